// low_rank_forward and low_rank_backward against the definition, in float64.
//
// Conditions, maps and offsets lie on a lattice fine enough for every generated weight to be exact in
// float32, so that both sides of a clip agree, also where a weight equals delta.
#include "low_rank/low_rank.h"

#include <cmath>

#include "check/check.h"

namespace solid::check {
namespace {

using Values = std::vector<double>;
using Tables = std::vector<Values>;  // one for each layer

enum Table : size_t { kEnter, kLeave, kBias, kItemMap, kItemOffset, kSemanticMap, kSemanticOffset, kTables };

struct Problem {
  int64_t batch, targets, rank;
  std::vector<int64_t> sizes;
  double delta;
  bool gated, backward, not_a_number;
  int64_t code_dim[2];  // of the item and of the semantic branch; 0: absent
  Values x, z[2], gate, dy;
  Tables tables[kTables];
  Values y, dx, dz[2], dgate;
  Tables gradients[kTables];

  int64_t layers() const { return int64_t(sizes.size()) - 1; }
};

// All of one sequence and layer.
struct Core {
  Values w;                  // [r + 1, r]
  std::vector<bool> inside;  // the clip's gradient passes
};

Core core_of(const Problem& p, size_t l, int64_t b) {
  const int64_t r = p.rank;
  Core core{Values(size_t((r + 1) * r), 0), std::vector<bool>(size_t((r + 1) * r), true)};
  for (const size_t branch : {size_t(0), size_t(1)}) {
    const int64_t k = p.code_dim[branch];
    for (int64_t at = 0; at < (r + 1) * r && k > 0; ++at) {
      const int64_t i = at / r, o = at % r;
      double w = p.tables[branch == 0 ? kItemOffset : kSemanticOffset][l][size_t(at)];
      for (int64_t j = 0; j < k; ++j)
        w += p.z[branch][size_t(b * k + j)] *
             p.tables[branch == 0 ? kItemMap : kSemanticMap][l][size_t((i * k + j) * r + o)];
      if (branch == 0) {
        core.inside[size_t(at)] = std::fabs(w) <= p.delta;
        w = w > p.delta ? p.delta : w < -p.delta ? -p.delta : w;
      }
      core.w[size_t(at)] += w;
    }
  }
  return core;
}

// Row `row` of target and sequence b through all layers, and back if p.backward.
void solve_row(Problem& p, int64_t b, int64_t row, const std::vector<Core>& cores) {
  const int64_t r = p.rank;
  std::vector<Values> inputs, entered, leaving;  // per layer
  const int64_t first = p.sizes[0], last = p.sizes.back();
  Values h(p.x.begin() + row * first, p.x.begin() + (row + 1) * first);
  for (size_t l = 0; l < size_t(p.layers()); ++l) {
    const int64_t d = p.sizes[l], o_max = p.sizes[l + 1];
    inputs.push_back(h);
    Values u(size_t(r), 0), s(size_t(r), 0), out(static_cast<size_t>(o_max));
    for (int64_t j = 0; j < r; ++j)
      for (int64_t i = 0; i < d; ++i) u[size_t(j)] += p.tables[kEnter][l][size_t(j * d + i)] * h[size_t(i)];
    for (int64_t o = 0; o < r; ++o) {
      s[size_t(o)] = cores[l].w[size_t(r * r + o)];
      for (int64_t i = 0; i < r; ++i) s[size_t(o)] += u[size_t(i)] * cores[l].w[size_t(i * r + o)];
    }
    for (int64_t o = 0; o < o_max; ++o) {
      double sum = p.tables[kBias][l][size_t(o)];
      for (int64_t j = 0; j < r; ++j) sum += p.tables[kLeave][l][size_t(o * r + j)] * s[size_t(j)];
      out[size_t(o)] = l + 1 < size_t(p.layers()) ? std::tanh(sum) : sum;
    }
    entered.push_back(u), leaving.push_back(s), h = out;
  }
  for (int64_t o = 0; o < last; ++o)
    p.y[size_t(row * last + o)] =
        p.gated ? p.x[size_t(row * first + o)] + p.gate[0] * h[size_t(o)] : h[size_t(o)];
  if (!p.backward) return;
  Values g(p.dy.begin() + row * last, p.dy.begin() + (row + 1) * last);
  if (p.gated) {
    for (int64_t o = 0; o < last; ++o) {
      p.dgate[0] += g[size_t(o)] * h[size_t(o)];
      p.dx[size_t(row * first + o)] += g[size_t(o)];
      g[size_t(o)] *= p.gate[0];
    }
  }
  for (size_t l = size_t(p.layers()); l-- > 0;) {
    const int64_t d = p.sizes[l], o_max = p.sizes[l + 1];
    Values ds(size_t(r), 0), du(size_t(r), 0), below(size_t(d), 0);
    for (int64_t o = 0; o < o_max; ++o) {
      p.gradients[kBias][l][size_t(o)] += g[size_t(o)];
      for (int64_t j = 0; j < r; ++j) {
        p.gradients[kLeave][l][size_t(o * r + j)] += g[size_t(o)] * leaving[l][size_t(j)];
        ds[size_t(j)] += g[size_t(o)] * p.tables[kLeave][l][size_t(o * r + j)];
      }
    }
    for (int64_t at = 0; at < (r + 1) * r; ++at) {
      const int64_t i = at / r, o = at % r;
      const double product = ds[size_t(o)] * (i < r ? entered[l][size_t(i)] : 1);
      if (i < r) du[size_t(i)] += ds[size_t(o)] * cores[l].w[size_t(at)];
      for (const size_t branch : {size_t(0), size_t(1)}) {
        const int64_t k = p.code_dim[branch];
        if (k == 0 || (branch == 0 && !cores[l].inside[size_t(at)])) continue;
        p.gradients[branch == 0 ? kItemOffset : kSemanticOffset][l][size_t(at)] += product;
        for (int64_t j = 0; j < k; ++j) {
          const size_t in_map = size_t((i * k + j) * r + o);
          p.gradients[branch == 0 ? kItemMap : kSemanticMap][l][in_map] +=
              product * p.z[branch][size_t(b * k + j)];
          p.dz[branch][size_t(b * k + j)] +=
              product * p.tables[branch == 0 ? kItemMap : kSemanticMap][l][in_map];
        }
      }
    }
    for (int64_t j = 0; j < r; ++j) {
      for (int64_t i = 0; i < d; ++i) {
        p.gradients[kEnter][l][size_t(j * d + i)] += du[size_t(j)] * inputs[l][size_t(i)];
        below[size_t(i)] += du[size_t(j)] * p.tables[kEnter][l][size_t(j * d + i)];
      }
    }
    for (int64_t i = 0; i < d && l > 0; ++i)
      below[size_t(i)] *= 1 - inputs[l][size_t(i)] * inputs[l][size_t(i)];
    g = below;
  }
  for (int64_t i = 0; i < first; ++i) p.dx[size_t(row * first + i)] += g[size_t(i)];
}

void solve(Problem& p) {
  p.y.assign(size_t(p.batch * p.targets * p.sizes.back()), 0);
  p.dx.assign(p.x.size(), 0), p.dgate.assign(1, 0);
  for (const size_t branch : {size_t(0), size_t(1)}) p.dz[branch].assign(p.z[branch].size(), 0);
  for (size_t t = 0; t < kTables; ++t) {
    p.gradients[t].clear();
    for (const Values& v : p.tables[t]) p.gradients[t].emplace_back(v.size(), 0);
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    std::vector<Core> cores;
    for (size_t l = 0; l < size_t(p.layers()); ++l) cores.push_back(core_of(p, l, b));
    for (int64_t t = 0; t < p.targets; ++t) solve_row(p, b, b * p.targets + t, cores);
  }
}

// Tables as a kernel takes them; `wanted`: which have memory.
template <class T>
struct Arrays {
  std::vector<Array<T>> of[kTables];
  std::vector<void*> lists[kTables];

  Arrays(const Tables (&tables)[kTables], uint64_t wanted, bool filled, int64_t lead) {
    for (size_t t = 0; t < kTables; ++t) {
      for (const Values& v : tables[t]) {
        const bool want = wanted & 1;
        wanted = wanted >> 1 | wanted << 63;
        if (filled)
          of[t].emplace_back(v, lead);
        else
          of[t].emplace_back(want ? int64_t(v.size()) : 0, lead);
        lists[t].push_back(want ? of[t].back().data() : nullptr);
      }
    }
  }
};

template <class T>
struct Result {
  Array<T> y, dx, dz_item, dz_semantic, dgate;
  Arrays<T> tables;

  template <class Body>
  void for_each(const Body& body) const {
    body("y", y), body("dx", dx), body("dz item", dz_item), body("dz semantic", dz_semantic);
    body("dgate", dgate);
    static const char* const kNames[] = {"enter",       "leave",        "bias",           "item map",
                                         "item offset", "semantic map", "semantic offset"};
    for (size_t t = 0; t < kTables; ++t)
      for (const Array<T>& array : tables.of[t]) body(kNames[t], array);
  }
};

template <class T>
void check_type(Tally& tally, Random& random, Problem& p, double tolerance) {
  const int64_t lead = random.below(2);
  solve(p);
  const Array<T> x(p.x, lead), z_item(p.z[0], lead), z_semantic(p.z[1], lead), gate(p.gate, lead),
      dy(p.dy, lead);
  const Arrays<T> tables(p.tables, ~uint64_t(0), true, lead);
  const uint64_t wanted = p.backward ? random.next() | random.next() | random.next() : 0;  // most of them
  const bool want_x = p.backward && random.chance(80), want_gate = p.backward && p.gated;
  const bool want_z[2] = {p.backward && random.chance(80), p.backward && random.chance(80)};
  const auto fresh = [&] {
    const auto room = [&](bool want, const Values& v) {
      return Array<T>(want ? int64_t(v.size()) : 0, lead);
    };
    return Result<T>{Array<T>(int64_t(p.y.size()), lead),
                     room(want_x, p.dx),
                     room(want_z[0], p.dz[0]),
                     room(want_z[1], p.dz[1]),
                     room(want_gate, p.dgate),
                     Arrays<T>(p.tables, wanted, false, lead)};
  };
  const auto run = [&](const Result<T>& result, int threads) {
    result.for_each([&](const char*, const Array<T>& array) { array.poison(threads); });
    LowRankMlp call;
    call.is_double = sizeof(T) == 8;
    call.batch = p.batch, call.targets = p.targets, call.layers = p.layers(), call.rank = p.rank;
    call.sizes = p.sizes.data(), call.delta = p.delta, call.threads = threads;
    const auto list = [](const std::vector<void*>& of) { return const_cast<const void* const*>(of.data()); };
    const auto set = [&](DynamicBranch& branch, int64_t code_dim, const Array<T>& z, Table maps) {
      branch.present = code_dim > 0, branch.code_dim = code_dim, branch.z = z.data();
      branch.maps = list(tables.lists[maps]), branch.offsets = list(tables.lists[maps + 1]);
    };
    set(call.item, p.code_dim[0], z_item, kItemMap);
    set(call.semantic, p.code_dim[1], z_semantic, kSemanticMap);
    call.enters = list(tables.lists[kEnter]), call.leaves = list(tables.lists[kLeave]);
    call.biases = list(tables.lists[kBias]);
    call.gate = p.gated ? gate.data() : nullptr;
    call.x = x.data(), call.y = result.y.data();
    const Array<T> kept(p.backward ? SOLID_IN_USE(low_rank_kept)(call) : 0);
    kept.poison(threads);
    call.kept = p.backward ? kept.data() : nullptr;
    for (const bool backward : {false, true}) {
      if (backward && !p.backward) return;
      const Array<char> workspace(SOLID_IN_USE(low_rank_workspace)(call, backward));
      workspace.poison(threads);
      call.workspace = workspace.data();
      if (!backward) {
        tally.expect(SOLID_IN_USE(low_rank_forward)(call) == Status::kOk, "status");
        continue;
      }
      const auto asked = [](bool want, const Array<T>& array) -> void* {
        return want ? array.data() : nullptr;
      };
      call.dy = dy.data(), call.dx = asked(want_x, result.dx);
      call.dgate = asked(want_gate, result.dgate);
      call.item.dz = asked(want_z[0] && p.code_dim[0] > 0, result.dz_item);
      call.semantic.dz = asked(want_z[1] && p.code_dim[1] > 0, result.dz_semantic);
      const auto& lists = result.tables.lists;
      call.denters = lists[kEnter].data(), call.dleaves = lists[kLeave].data();
      call.dbiases = lists[kBias].data();
      call.item.dmaps = lists[kItemMap].data(), call.item.doffsets = lists[kItemOffset].data();
      call.semantic.dmaps = lists[kSemanticMap].data(),
      call.semantic.doffsets = lists[kSemanticOffset].data();
      tally.expect(SOLID_IN_USE(low_rank_backward)(call) == Status::kOk, "status");
    }
  };
  const Result<T> first = fresh();
  tally.for_levels([&](int threads) {
    if (threads > 1) {
      const Result<T> again = fresh();
      run(again, threads);
      std::vector<const Array<T>*> left;
      again.for_each([&](const char*, const Array<T>& array) { left.push_back(&array); });
      size_t at = 0;
      first.for_each([&](const char* name, const Array<T>& array) { tally.same(name, *left[at++], array); });
      return;
    }
    run(first, 1);
    std::vector<const Values*> expected = {&p.y, &p.dx, &p.dz[0], &p.dz[1], &p.dgate};
    for (const Tables& of : p.gradients)
      for (const Values& v : of) expected.push_back(&v);
    size_t at = 0;
    first.for_each([&](const char* name, const Array<T>& array) {
      tally.collect(array);
      tally.near(name, array, *expected[at++], tolerance);
    });
  });
}

}  // namespace

void check_low_rank(Tally& tally, Random random) {
  Problem p;
  p.targets = random.chance(60) ? 1 : random.pick({2, 3, 5});
  p.batch = random.pick({1, 2, 5, 6, 7, 15, 16, 17, 31, 32, 33, 65});
  p.rank = random.pick({1, 2, 3, 5, 8, 8, 16, 16, 17, 32, 33});
  const int64_t layers = random.pick({1, 2, 2, 3});
  for (int64_t l = 0; l <= layers; ++l) p.sizes.push_back(random.pick({1, 3, 8, 15, 16, 17, 33}));
  p.code_dim[0] = random.pick({1, 2, 7, 8, 9, 16, 17}), p.code_dim[1] = random.pick({1, 4, 8, 15, 16});
  if (random.chance(6)) {  // chunks of the backward
    p.batch = random.pick({300, 600}), p.targets = random.pick({1, 5}), p.rank = random.pick({2, 5});
    for (int64_t& size : p.sizes) size = 3;
    p.code_dim[0] = p.code_dim[1] = 2;
  } else if (p.rank > 17) {
    p.batch = random.pick({1, 5, 7, 33}), p.targets = 1, p.code_dim[0] = 3, p.code_dim[1] = 4;
  }
  const int64_t branches = random.below(3);
  if (branches > 0) p.code_dim[branches - 1] = 0;
  p.delta = random.chance(25) ? HUGE_VAL : double(random.pick({0, 1, 4, 16})) / 64;
  p.gated = random.chance(50);
  if (p.gated) p.sizes.back() = p.sizes[0];
  p.backward = random.chance(80);
  p.not_a_number = !p.backward && random.chance(50);
  const auto uniform = [&](Values& to, int64_t count) {
    to.resize(size_t(count));
    for (double& v : to) v = double(float(random.uniform()));
  };
  const auto lattice = [&](Values& to, int64_t count, int64_t most, double step) {
    to.resize(size_t(count));
    for (double& v : to) v = double(random.between(-most, most)) * step;
  };
  uniform(p.x, p.batch * p.targets * p.sizes[0]), uniform(p.dy, p.batch * p.targets * p.sizes.back());
  uniform(p.gate, 1);
  for (const size_t branch : {size_t(0), size_t(1)}) lattice(p.z[branch], p.batch * p.code_dim[branch], 4, 0.25);
  if (p.not_a_number) {
    Values& z = p.z[p.code_dim[0] > 0 ? 0 : 1];
    z[size_t(random.below(int64_t(z.size())))] = NAN;
  }
  for (size_t l = 0; l < size_t(layers); ++l) {
    const int64_t d = p.sizes[l], o = p.sizes[l + 1], r = p.rank;
    for (Tables& of : p.tables) of.emplace_back();
    uniform(p.tables[kEnter][l], r * d), uniform(p.tables[kLeave][l], o * r), uniform(p.tables[kBias][l], o);
    for (double& v : p.tables[kEnter][l]) v = double(float(v / std::sqrt(double(d))));
    for (double& v : p.tables[kLeave][l]) v = double(float(v / std::sqrt(double(r))));
    for (const size_t branch : {size_t(0), size_t(1)}) {
      const size_t maps = branch == 0 ? kItemMap : kSemanticMap;
      const int64_t k = p.code_dim[branch];
      lattice(p.tables[maps][l], (r + 1) * k * r, 8, 1.0 / 64);
      lattice(p.tables[maps + 1][l], k > 0 ? (r + 1) * r : 0, 8, 1.0 / 64);
    }
  }
  const bool wide = random.chance(30);
  static const char* const kBranches[] = {"both", "semantic", "item"};
  tally.shape = std::string("low_rank ") + (wide ? "float64" : "float32") + " B=" + std::to_string(p.batch) +
                " T=" + std::to_string(p.targets) + " r=" + std::to_string(p.rank) + " sizes=";
  for (const int64_t size : p.sizes) tally.shape += std::to_string(size) + ",";
  tally.shape += std::string(" ") + kBranches[branches] + " delta=" + std::to_string(p.delta) +
                 (p.gated ? " gated" : "") + (p.backward ? "" : " forward") + (p.not_a_number ? " NaN" : "");
  if (wide)
    check_type<double>(tally, random, p, 1e-12);
  else
    check_type<float>(tally, random, p, 3e-5);
}

}  // namespace solid::check
