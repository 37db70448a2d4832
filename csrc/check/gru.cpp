// gru_forward and gru_backward against the definition, in float64.
#include "gru/gru.h"

#include <cmath>

#include "check/check.h"

namespace solid::check {
namespace {

using Values = std::vector<double>;

struct Problem {
  int64_t batch, length, inputs, hidden;
  int64_t batch_stride, time_stride;
  bool backward;
  Values x;  // with its strides
  std::vector<bool> mask;
  Values weight_input, weight_hidden, bias_input, bias_hidden, dh;
  Values h, states;  // states [L, B, H]
  Values dx, dweight_input, dweight_hidden, dbias_input, dbias_hidden;

  double at(int64_t b, int64_t t, int64_t d) const {
    return x[size_t(b * batch_stride + t * time_stride + d)];
  }
};

struct Gates {
  Values r, z, n, of_state;  // of_state: W_hn h + b_hn
};

Gates gates_of(const Problem& p, int64_t b, int64_t t, const Values& h) {
  const auto sums = [&](int64_t row, double& input, double& state) {
    input = p.bias_input[size_t(row)], state = p.bias_hidden[size_t(row)];
    for (int64_t d = 0; d < p.inputs; ++d)
      input += p.weight_input[size_t(row * p.inputs + d)] * p.at(b, t, d);
    for (int64_t k = 0; k < p.hidden; ++k)
      state += p.weight_hidden[size_t(row * p.hidden + k)] * h[size_t(k)];
  };
  Gates g;
  for (int64_t j = 0; j < p.hidden; ++j) {
    double input, state;
    sums(j, input, state);
    g.r.push_back(1 / (1 + std::exp(-input - state)));
    sums(p.hidden + j, input, state);
    g.z.push_back(1 / (1 + std::exp(-input - state)));
    sums(2 * p.hidden + j, input, state);
    g.n.push_back(std::tanh(input + g.r.back() * state));
    g.of_state.push_back(state);
  }
  return g;
}

void solve_forward(Problem& p) {
  p.h.assign(size_t(p.batch * p.hidden), 0);
  p.states.assign(size_t(p.length * p.batch * p.hidden), 0);
  for (int64_t b = 0; b < p.batch; ++b) {
    Values h(size_t(p.hidden), 0);
    for (int64_t t = 0; t < p.length; ++t) {
      if (!p.mask[size_t(b * p.length + t)]) continue;
      for (int64_t j = 0; j < p.hidden; ++j)
        p.states[size_t((t * p.batch + b) * p.hidden + j)] = h[size_t(j)];
      const Gates g = gates_of(p, b, t, h);
      for (size_t j = 0; j < h.size(); ++j) h[j] = g.n[j] + g.z[j] * (h[j] - g.n[j]);
    }
    for (int64_t j = 0; j < p.hidden; ++j) p.h[size_t(b * p.hidden + j)] = h[size_t(j)];
  }
}

void solve_backward(Problem& p) {
  const int64_t units = p.hidden;
  p.dx.assign(size_t(p.batch * p.length * p.inputs), 0);
  p.dweight_input.assign(p.weight_input.size(), 0);
  p.dweight_hidden.assign(p.weight_hidden.size(), 0);
  p.dbias_input.assign(p.bias_input.size(), 0);
  p.dbias_hidden.assign(p.bias_hidden.size(), 0);
  for (int64_t b = 0; b < p.batch; ++b) {
    Values dh(p.dh.begin() + b * units, p.dh.begin() + (b + 1) * units);
    for (int64_t t = p.length - 1; t >= 0; --t) {
      if (!p.mask[size_t(b * p.length + t)]) continue;
      const Values h(p.states.begin() + (t * p.batch + b) * units,
                     p.states.begin() + (t * p.batch + b + 1) * units);
      const Gates g = gates_of(p, b, t, h);
      Values before(size_t(units), 0);
      const auto back = [&](int64_t row, double input, double state) {
        p.dbias_input[size_t(row)] += input;
        p.dbias_hidden[size_t(row)] += state;
        for (int64_t d = 0; d < p.inputs; ++d) {
          p.dweight_input[size_t(row * p.inputs + d)] += input * p.at(b, t, d);
          p.dx[size_t((b * p.length + t) * p.inputs + d)] +=
              input * p.weight_input[size_t(row * p.inputs + d)];
        }
        for (int64_t k = 0; k < units; ++k) {
          p.dweight_hidden[size_t(row * units + k)] += state * h[size_t(k)];
          before[size_t(k)] += state * p.weight_hidden[size_t(row * units + k)];
        }
      };
      for (int64_t j = 0; j < units; ++j) {
        const size_t at = size_t(j);
        const double r = g.r[at], z = g.z[at], n = g.n[at];
        const double dn = dh[at] * (1 - z) * (1 - n * n), dz = dh[at] * (h[at] - n) * z * (1 - z);
        const double dr = dn * g.of_state[at] * r * (1 - r);
        back(j, dr, dr);
        back(units + j, dz, dz);
        back(2 * units + j, dn, dn * r);
        before[at] += dh[at] * z;
      }
      dh = before;
    }
  }
}

template <class T>
struct Result {
  Array<T> h, states, dx, dweight_input, dweight_hidden, dbias_input, dbias_hidden;

  template <class Body>
  void for_each(const Body& body) const {
    body("h", h), body("states", states), body("dx", dx);
    body("dweight_input", dweight_input), body("dweight_hidden", dweight_hidden);
    body("dbias_input", dbias_input), body("dbias_hidden", dbias_hidden);
  }
};

template <class T>
void check_type(Tally& tally, Random& random, Problem& p, double tolerance) {
  const int64_t lead = random.below(2);
  const double scale = 1.5 / std::sqrt(double(p.hidden));
  const double input = random.chance(20) ? 10 : scale;  // 10: gates at their ends
  const auto draw = [&](Values& to, int64_t count, double size) {
    to.resize(size_t(count));
    for (double& v : to) v = double(T(random.uniform() * size));
  };
  draw(p.weight_input, 3 * p.hidden * p.inputs, input);
  draw(p.weight_hidden, 3 * p.hidden * p.hidden, scale);
  draw(p.bias_input, 3 * p.hidden, scale);
  draw(p.bias_hidden, 3 * p.hidden, scale);
  draw(p.dh, p.batch * p.hidden, 1);
  draw(p.x, p.batch > 0 ? (p.batch - 1) * p.batch_stride + (p.length - 1) * p.time_stride + p.inputs : 0, 1);
  // A masked position of x is not read; one that is read spoils its sequence.
  const bool spoiled = !p.backward && p.batch > 0 && random.chance(50);
  for (int64_t at = 0; at < p.batch * p.length; ++at) {
    if (p.mask[size_t(at)] && !(spoiled && random.chance(5))) continue;
    p.x[size_t(at / p.length * p.batch_stride + at % p.length * p.time_stride + random.below(p.inputs))] =
        NAN;
  }
  solve_forward(p);
  if (p.backward) solve_backward(p);

  const Array<T> x(p.x, lead), weight_input(p.weight_input, lead), weight_hidden(p.weight_hidden, lead);
  const Array<T> bias_input(p.bias_input, lead), bias_hidden(p.bias_hidden, lead), dh(p.dh, lead);
  Array<bool> mask(p.batch * p.length);
  for (int64_t i = 0; i < mask.count(); ++i) mask[i] = p.mask[size_t(i)];
  const bool keep = p.backward || random.chance(50);
  bool wanted[5];
  for (bool& want : wanted) want = p.backward && random.chance(80);
  const auto fresh = [&] {
    const auto gradient = [&](int i, const Values& v) {
      return Array<T>(wanted[i] ? int64_t(v.size()) : 0, lead);
    };
    return Result<T>{Array<T>(int64_t(p.h.size()), lead),
                     Array<T>(keep ? int64_t(p.states.size()) : 0, lead),
                     gradient(0, p.dx),
                     gradient(1, p.dweight_input),
                     gradient(2, p.dweight_hidden),
                     gradient(3, p.dbias_input),
                     gradient(4, p.dbias_hidden)};
  };
  const auto run = [&](const Result<T>& result, int threads) {
    result.for_each([&](const char*, const Array<T>& array) { array.poison(threads); });
    Gru call;
    call.is_double = sizeof(T) == 8;
    call.batch = p.batch, call.length = p.length, call.inputs = p.inputs, call.hidden = p.hidden;
    call.threads = threads;
    call.x = x.data(), call.x_batch_stride = p.batch_stride, call.x_time_stride = p.time_stride;
    call.mask = mask.data();
    call.weight_input = weight_input.data(), call.weight_hidden = weight_hidden.data();
    call.bias_input = bias_input.data(), call.bias_hidden = bias_hidden.data();
    call.h = result.h.data(), call.states = keep ? result.states.data() : nullptr;
    for (const bool backward : {false, true}) {
      if (backward && !p.backward) return;
      const Array<char> workspace(SOLID_IN_USE(gru_workspace)(call, backward));
      workspace.poison(threads);
      call.workspace = workspace.data();
      if (!backward) {
        tally.expect(SOLID_IN_USE(gru_forward)(call) == Status::kOk, "status");
        continue;
      }
      const auto gradient = [&](int i, const Array<T>& array) { return wanted[i] ? array.data() : nullptr; };
      call.h = nullptr, call.dh = dh.data(), call.dx = gradient(0, result.dx);
      call.dweight_input = gradient(1, result.dweight_input);
      call.dweight_hidden = gradient(2, result.dweight_hidden);
      call.dbias_input = gradient(3, result.dbias_input);
      call.dbias_hidden = gradient(4, result.dbias_hidden);
      tally.expect(SOLID_IN_USE(gru_backward)(call) == Status::kOk, "status");
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
    const Values* const expected[] = {
        &p.h, &p.states, &p.dx, &p.dweight_input, &p.dweight_hidden, &p.dbias_input, &p.dbias_hidden};
    size_t at = 0;
    first.for_each([&](const char* name, const Array<T>& array) {
      tally.collect(array);
      tally.near(name, array, *expected[at++], tolerance);
    });
  });
}

}  // namespace

void check_gru(Tally& tally, Random random) {
  Problem p;
  p.batch = random.pick({0, 1, 2, 3, 5, 6, 7, 23, 24, 25, 47, 71, 72, 73});
  p.length = random.pick({1, 2, 3, 5});
  p.inputs = random.size();
  p.hidden = random.size();
  if (p.inputs > 20 && p.hidden > 20) p.batch = random.pick({1, 7, 13});
  if (random.chance(6)) p.batch = 1200, p.inputs = 3, p.hidden = 2;  // strips of more than a block
  p.time_stride = p.inputs + random.pick({0, 0, 2});
  p.batch_stride = p.length * p.time_stride + random.pick({0, 0, 3});
  p.backward = random.chance(75);
  const int64_t kind = random.below(4);  // of mask: all, none, the end of a sequence, any
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t padding = random.between(0, p.length);
    for (int64_t t = 0; t < p.length; ++t)
      p.mask.push_back(kind == 0 || (kind == 2 && t >= padding) || (kind == 3 && random.chance(50)));
  }
  const bool wide = random.chance(30);
  tally.shape = std::string("gru ") + (wide ? "float64" : "float32") + " B=" + std::to_string(p.batch) +
                " L=" + std::to_string(p.length) + " D=" + std::to_string(p.inputs) +
                " H=" + std::to_string(p.hidden) + " mask=" + std::to_string(kind) +
                (p.backward ? "" : " forward");
  if (wide)
    check_type<double>(tally, random, p, 1e-11);
  else
    check_type<float>(tally, random, p, 5e-5);
}

}  // namespace solid::check
