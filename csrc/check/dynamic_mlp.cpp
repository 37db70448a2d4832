// dynamic_forward and dynamic_backward against the definition, in float64.
//
// Codes, maps and offsets lie on a lattice fine enough for every generated weight to be exact in float32, so
// that both sides of a clip agree, also where a weight equals delta.
#include <cmath>

#include "check/check.h"
#include "dynamic_linear/dynamic_linear.h"

namespace solid::check {
namespace {

using Values = std::vector<double>;

struct Branch {
  bool present = false;
  int64_t code_dim = 0;
  Values z;                           // [B, k]
  std::vector<Values> maps, offsets;  // per layer
  Values dz;
  std::vector<Values> dmaps, doffsets;
};

struct Problem {
  int64_t batch, targets;
  std::vector<int64_t> sizes;
  double delta;
  bool tanh_last, backward, keep_hidden;
  bool not_a_number;  // one sequence has a NaN in its condition
  Branch item, semantic;
  Values x, dy, y, dx;
  std::vector<Values> hidden;  // h_1 .. h_{P-1}

  int64_t layers() const { return int64_t(sizes.size()) - 1; }
  bool curved(int64_t l) const { return l + 1 < layers() || tanh_last; }
};

double lattice(Random& random, int64_t most, double step) {
  return double(random.between(-most, most)) * step;
}

Branch draw_branch(Random& random, const Problem& p, int64_t code_dim) {
  Branch b;
  b.present = true;
  b.code_dim = code_dim;
  b.z.resize(size_t(p.batch * code_dim));
  for (double& v : b.z) v = lattice(random, 4, 0.25);
  for (int64_t l = 0; l < p.layers(); ++l) {
    const int64_t weights = (p.sizes[size_t(l)] + 1) * p.sizes[size_t(l) + 1];
    b.maps.emplace_back(size_t(weights * code_dim));
    b.offsets.emplace_back(size_t(weights));
    for (double& v : b.maps.back()) v = lattice(random, 8, 1.0 / 64);
    for (double& v : b.offsets.back()) v = lattice(random, 8, 1.0 / 64);
  }
  return b;
}

// One branch's weight [i, o] of layer l for sequence b.
double generated(const Branch& branch, int64_t outputs, int64_t l, int64_t b, int64_t i, int64_t o) {
  double w = branch.offsets[size_t(l)][size_t(i * outputs + o)];
  const double* const map = branch.maps[size_t(l)].data() + i * branch.code_dim * outputs + o;
  for (int64_t k = 0; k < branch.code_dim; ++k)
    w += branch.z[size_t(b * branch.code_dim + k)] * map[k * outputs];
  return w;
}

struct Weights {
  Values w;                  // [D + 1, O]
  std::vector<bool> inside;  // the clip's gradient passes
};

Weights weights_of(const Problem& p, int64_t l, int64_t b) {
  const int64_t inputs = p.sizes[size_t(l)], outputs = p.sizes[size_t(l) + 1];
  Weights found{Values(size_t((inputs + 1) * outputs), 0),
                std::vector<bool>(size_t((inputs + 1) * outputs), true)};
  for (int64_t i = 0; i <= inputs; ++i) {
    for (int64_t o = 0; o < outputs; ++o) {
      const size_t at = size_t(i * outputs + o);
      if (p.item.present) {
        const double w = generated(p.item, outputs, l, b, i, o);
        found.inside[at] = std::fabs(w) <= p.delta;
        found.w[at] = w > p.delta ? p.delta : w < -p.delta ? -p.delta : w;
      }
      if (p.semantic.present) found.w[at] += generated(p.semantic, outputs, l, b, i, o);
    }
  }
  return found;
}

const Values& input_of(const Problem& p, int64_t l) { return l == 0 ? p.x : p.hidden[size_t(l - 1)]; }

void solve_forward(Problem& p) {
  p.hidden.clear();
  for (int64_t l = 1; l < p.layers(); ++l)
    p.hidden.emplace_back(size_t(p.batch * p.targets * p.sizes[size_t(l)]));
  p.y.resize(size_t(p.batch * p.targets * p.sizes.back()));
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t l = 0; l < p.layers(); ++l) {
      const int64_t inputs = p.sizes[size_t(l)], outputs = p.sizes[size_t(l) + 1];
      const Weights weights = weights_of(p, l, b);
      Values& out = l + 1 == p.layers() ? p.y : p.hidden[size_t(l)];
      for (int64_t t = b * p.targets; t < (b + 1) * p.targets; ++t) {
        for (int64_t o = 0; o < outputs; ++o) {
          double sum = weights.w[size_t(inputs * outputs + o)];
          for (int64_t i = 0; i < inputs; ++i)
            sum += input_of(p, l)[size_t(t * inputs + i)] * weights.w[size_t(i * outputs + o)];
          out[size_t(t * outputs + o)] = p.curved(l) ? std::tanh(sum) : sum;
        }
      }
    }
  }
}

void add_branch(Branch& branch, int64_t outputs, int64_t l, int64_t b, int64_t i, int64_t o,
                double gradient) {
  if (!branch.present) return;
  branch.doffsets[size_t(l)][size_t(i * outputs + o)] += gradient;
  for (int64_t k = 0; k < branch.code_dim; ++k) {
    const size_t at = size_t((i * branch.code_dim + k) * outputs + o);
    branch.dmaps[size_t(l)][at] += branch.z[size_t(b * branch.code_dim + k)] * gradient;
    branch.dz[size_t(b * branch.code_dim + k)] += branch.maps[size_t(l)][at] * gradient;
  }
}

// y: what the kernel wrote, since tanh's gradient is taken from it.
void solve_backward(Problem& p, const Values& y) {
  p.dx.assign(p.x.size(), 0);
  for (Branch* branch : {&p.item, &p.semantic}) {
    branch->dz.assign(branch->z.size(), 0);
    branch->dmaps.clear(), branch->doffsets.clear();
    for (const Values& map : branch->maps) branch->dmaps.emplace_back(map.size(), 0);
    for (const Values& offset : branch->offsets) branch->doffsets.emplace_back(offset.size(), 0);
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    Values g(p.dy.begin() + b * p.targets * p.sizes.back(),
             p.dy.begin() + (b + 1) * p.targets * p.sizes.back());
    for (int64_t l = p.layers() - 1; l >= 0; --l) {
      const int64_t inputs = p.sizes[size_t(l)], outputs = p.sizes[size_t(l) + 1];
      const Values& out = l + 1 == p.layers() ? y : p.hidden[size_t(l)];
      for (int64_t at = 0; p.curved(l) && at < p.targets * outputs; ++at) {
        const double h = out[size_t(b * p.targets * outputs + at)];
        g[size_t(at)] *= 1 - h * h;
      }
      const Weights weights = weights_of(p, l, b);
      Values below(size_t(p.targets * inputs), 0);
      for (int64_t i = 0; i <= inputs; ++i) {
        for (int64_t o = 0; o < outputs; ++o) {
          double product = 0;
          for (int64_t t = 0; t < p.targets; ++t) {
            const double up = g[size_t(t * outputs + o)];
            product += up * (i < inputs ? input_of(p, l)[size_t((b * p.targets + t) * inputs + i)] : 1);
            if (i < inputs) below[size_t(t * inputs + i)] += up * weights.w[size_t(i * outputs + o)];
          }
          if (weights.inside[size_t(i * outputs + o)]) add_branch(p.item, outputs, l, b, i, o, product);
          add_branch(p.semantic, outputs, l, b, i, o, product);
        }
      }
      g = below;
    }
    for (size_t at = 0; at < g.size(); ++at) p.dx[size_t(b * p.targets * p.sizes[0]) + at] = g[at];
  }
}

// A branch as a kernel takes it; N: type of conditions, W: of parameters.
template <class N, class W>
struct Inputs {
  Array<N> z;
  std::vector<Array<W>> arrays;  // maps, then offsets
  std::vector<const void*> maps, offsets;

  Inputs(const Branch& b, int64_t lead) : z(b.z, lead) {
    for (const Values& v : b.maps) arrays.emplace_back(v, lead), maps.push_back(arrays.back().data());
    for (const Values& v : b.offsets) arrays.emplace_back(v, lead), offsets.push_back(arrays.back().data());
  }
};

template <class N, class W>
struct Gradients {
  Array<N> z;
  std::vector<Array<W>> arrays;
  std::vector<void*> maps, offsets;

  // What is not wanted has no memory.
  Gradients(const Branch& b, bool condition, uint64_t wanted, int64_t lead)
      : z(condition ? int64_t(b.z.size()) : 0, lead) {
    const auto put = [&](const Values& v, std::vector<void*>& list) {
      const bool want = wanted & 1;
      wanted >>= 1;
      arrays.emplace_back(want ? int64_t(v.size()) : 0, lead);
      list.push_back(want ? arrays.back().data() : nullptr);
    };
    for (const Values& v : b.maps) put(v, maps);
    for (const Values& v : b.offsets) put(v, offsets);
  }
};

template <class N, class W>
struct Result {
  Array<N> y, dx;
  Array<W> hidden;
  Gradients<N, W> item, semantic;

  template <class Body>
  void for_each(const Body& body) const {
    body("y", y), body("hidden", hidden), body("dx", dx), body("dz item", item.z),
        body("dz semantic", semantic.z);
    for (size_t i = 0; i < item.arrays.size(); ++i) body("parameters item", item.arrays[i]);
    for (size_t i = 0; i < semantic.arrays.size(); ++i) body("parameters semantic", semantic.arrays[i]);
  }
};

struct Tolerance {
  double outer, inner;  // of x's type, and of the parameters'
};

template <class N, class W>
void compare_parameters(Tally& tally, const std::string& name, const Gradients<N, W>& found,
                        const Branch& expected, double tolerance) {
  for (size_t l = 0; l < expected.maps.size(); ++l) {
    const std::string layer = " " + name + " " + std::to_string(l);
    tally.near("dmap" + layer, found.arrays[l], expected.dmaps[l], tolerance);
    tally.near("doffset" + layer, found.arrays[expected.maps.size() + l], expected.doffsets[l], tolerance);
  }
}

template <class N, class W>
void check_type(Tally& tally, Random& random, Problem& p, DynamicType type, Tolerance tolerance) {
  const int64_t lead = random.below(2);
  p.x.resize(size_t(p.batch * p.targets * p.sizes[0]));
  p.dy.resize(size_t(p.batch * p.targets * p.sizes.back()));
  for (Values* values : {&p.x, &p.dy})
    for (double& v : *values)
      v = sizeof(N) == 2 ? lattice(random, 96, 1.0 / 64) : double(W(random.uniform()));
  if (p.not_a_number) {
    Branch& branch = p.item.present ? p.item : p.semantic;
    branch.z[size_t(random.below(int64_t(branch.z.size())))] = NAN;
  }
  solve_forward(p);

  const Array<N> x(p.x, lead), dy(p.dy, lead);
  const Inputs<N, W> item(p.item, lead), semantic(p.semantic, lead);
  int64_t hidden = 0;
  for (const Values& h : p.hidden) hidden += int64_t(h.size());
  const bool want_x = random.chance(80), want_item = random.chance(80), want_semantic = random.chance(80);
  const uint64_t wanted = random.next() | random.next() | random.next();  // most of them
  const auto fresh = [&] {
    return Result<N, W>{
        Array<N>(int64_t(p.y.size()), lead), Array<N>(p.backward && want_x ? x.count() : 0, lead),
        Array<W>(p.keep_hidden ? hidden : 0, lead),
        Gradients<N, W>(p.backward ? p.item : Branch(), want_item, wanted, lead),
        Gradients<N, W>(p.backward ? p.semantic : Branch(), want_semantic, wanted >> 16, lead)};
  };
  const auto run = [&](const Result<N, W>& result, int threads) {
    result.for_each([&](const char*, const auto& array) { array.poison(threads); });
    DynamicMlp call;
    call.type = type;
    call.batch = p.batch, call.targets = p.targets, call.layers = p.layers(), call.sizes = p.sizes.data();
    call.delta = p.delta, call.tanh_last = p.tanh_last, call.threads = threads;
    const auto set = [&](DynamicBranch& to, const Branch& from, const Inputs<N, W>& in) {
      to.present = from.present, to.code_dim = from.code_dim;
      to.z = in.z.data(), to.maps = in.maps.data(), to.offsets = in.offsets.data();
    };
    set(call.item, p.item, item);
    set(call.semantic, p.semantic, semantic);
    call.x = x.data(), call.y = result.y.data();
    call.hidden = p.keep_hidden ? result.hidden.data() : nullptr;
    const auto workspace = [&](bool backward) {
      Array<char> bytes(SOLID_IN_USE(dynamic_workspace)(call, backward));
      bytes.poison(threads);
      call.workspace = bytes.data();
      return bytes;
    };
    {
      const Array<char> bytes = workspace(false);
      tally.expect(SOLID_IN_USE(dynamic_forward)(call) == Status::kOk, "status");
    }
    if (!p.backward) return;
    call.dy = dy.data(), call.dx = want_x ? result.dx.data() : nullptr;
    const auto ask = [](DynamicBranch& to, const Gradients<N, W>& out, bool condition) {
      to.dz = condition ? out.z.data() : nullptr;
      to.dmaps = out.maps.data(), to.doffsets = out.offsets.data();
    };
    ask(call.item, result.item, p.item.present && want_item);
    ask(call.semantic, result.semantic, p.semantic.present && want_semantic);
    const Array<char> bytes = workspace(true);
    tally.expect(SOLID_IN_USE(dynamic_backward)(call) == Status::kOk, "status");
  };
  const Result<N, W> first = fresh();
  bool solved = false;
  tally.for_levels([&](int threads) {
    if (threads > 1) {
      const Result<N, W> again = fresh();
      run(again, threads);
      std::vector<const void*> left;
      again.for_each([&](const char*, const auto& array) { left.push_back(&array); });
      size_t at = 0;
      first.for_each([&](const char* name, const auto& array) {
        tally.same(name, *static_cast<decltype(&array)>(left[at++]), array);
      });
      return;
    }
    run(first, 1);
    first.for_each([&](const char*, const auto& array) { tally.collect(array); });
    tally.near("y", first.y, p.y, tolerance.outer);
    Values kept;
    for (const Values& h : p.hidden) kept.insert(kept.end(), h.begin(), h.end());
    tally.near("hidden", first.hidden, kept, tolerance.inner);
    if (!p.backward) return;
    // In bfloat16 the levels' y may round apart: then the truth depends on it.
    if (!solved || (sizeof(N) == 2 && p.tanh_last)) {
      Values y;
      for (int64_t i = 0; i < first.y.count(); ++i) y.push_back(value_of(first.y[i]));
      solve_backward(p, y);
      solved = true;
    }
    tally.near("dx", first.dx, p.dx, tolerance.outer);
    tally.near("dz item", first.item.z, p.item.dz, tolerance.outer);
    tally.near("dz semantic", first.semantic.z, p.semantic.dz, tolerance.outer);
    compare_parameters(tally, "item", first.item, p.item, tolerance.inner);
    compare_parameters(tally, "semantic", first.semantic, p.semantic, tolerance.inner);
  });
}

}  // namespace

void check_dynamic_mlp(Tally& tally, Random random) {
  Problem p;
  p.targets = random.chance(55) ? 1 : random.pick({2, 3, 4, 5, 7, 64, 67});
  p.batch = random.pick({0, 1, 2, 5, 6, 7, 15, 16, 17, 31, 32, 33});
  const int64_t layers = random.pick({1, 1, 2, 2, 3});
  int64_t most = random.chance(25) ? 70 : 20;
  if (random.chance(15))
    most = 9, p.batch = p.targets == 1 ? random.pick({129, 257, 300}) : random.pick({35, 66});  // chunks
  if (p.targets > 7) p.batch = random.pick({1, 2, 17}), most = 17;
  const bool whole = random.chance(30);  // outputs that fill vectors: one sequence at a time
  for (int64_t l = 0; l <= layers; ++l) {
    int64_t size = random.size();
    while (size > most) size = random.size();
    p.sizes.push_back(whole && most > 15 ? random.pick({8, 16, most > 32 ? 32 : 16}) : size);
  }
  // Room for the gradients between three layers, filled to its end.
  if (layers == 3 && random.chance(50)) p.batch = 32, p.sizes[1] = p.sizes[2] = 17;
  p.delta = random.chance(25) ? HUGE_VAL : double(random.pick({0, 1, 4, 16})) / 64;
  p.tanh_last = random.chance(40);
  p.backward = random.chance(80);
  p.keep_hidden = p.backward || p.targets > 1 || random.chance(50);
  p.not_a_number = !p.backward && p.batch > 0 && random.chance(50);
  const int64_t branches = random.below(3), code_dim = random.pick({1, 2, 3, 7, 8, 9, 16, 17, 33});
  if (branches != 1) p.item = draw_branch(random, p, code_dim);
  if (branches != 2) p.semantic = draw_branch(random, p, random.pick({1, 4, 8, 15, 16, 31}));
  const int64_t type = random.pick({0, 0, 1, 2});
  static const char* const kTypes[] = {"float32", "float64", "bfloat16"};
  static const char* const kBranches[] = {"both", "semantic", "item"};
  tally.shape = std::string("dynamic_mlp ") + kTypes[type] + " B=" + std::to_string(p.batch) +
                " T=" + std::to_string(p.targets) + " sizes=";
  for (const int64_t size : p.sizes) tally.shape += std::to_string(size) + ",";
  tally.shape += std::string(" code_dim=") + std::to_string(p.item.code_dim) + "," +
                 std::to_string(p.semantic.code_dim) + " " + kBranches[branches] +
                 " delta=" + std::to_string(p.delta) + (p.tanh_last ? " tanh" : "") +
                 (p.backward ? "" : " forward") + (p.not_a_number ? " NaN" : "");
  if (type == 0) check_type<float, float>(tally, random, p, DynamicType::kFloat32, {2e-5, 2e-5});
  if (type == 1) check_type<double, double>(tally, random, p, DynamicType::kFloat64, {1e-12, 1e-12});
  if (type == 2) check_type<uint16_t, float>(tally, random, p, DynamicType::kBFloat16, {8e-3, 2e-5});
}

}  // namespace solid::check
