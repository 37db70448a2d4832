// catalogue_cross_entropy against the definition, in float64.
#include "catalogue_cross_entropy/catalogue_cross_entropy.h"

#include <cmath>

#include "check/check.h"

namespace solid::check {
namespace {

using Values = std::vector<double>;

struct Problem {
  int64_t rows, dim, items;
  bool with_bias, backward, of_state, of_table;
};

template <class T>
struct Result {
  Array<T> loss, dstate, dtable;

  Result(const Problem& p, int64_t lead)
      : loss(p.rows, lead),
        dstate(p.backward && p.of_state ? p.rows * p.dim : 0, lead),
        dtable(p.backward && p.of_table ? p.items * p.dim : 0, lead) {}
};

template <class T>
void check_type(Tally& tally, Random& random, const Problem& p, double tolerance) {
  const int64_t lead = random.below(2);
  const auto drawn = [&](int64_t count, double scale) {
    Array<T> values(count, lead);
    for (int64_t i = 0; i < count; ++i) values[i] = T(random.uniform() * scale);
    return values;
  };
  const Array<T> state = drawn(p.rows * p.dim, 2), table = drawn(p.items * p.dim, 2);
  const Array<T> bias = drawn(p.with_bias ? p.items : 0, 1), weight = drawn(p.backward ? p.rows : 0, 1);
  const Array<int64_t> target(p.rows, lead);
  for (int64_t b = 0; b < p.rows; ++b) target[b] = random.below(p.items);
  for (int64_t v = 0; v < bias.count(); ++v)  // items that take no part, a whole panel's worth now and then
    if (random.chance(v < 96 ? 60 : 10)) bias[v] = -T(__builtin_inff());
  for (int64_t b = 0; b < p.rows && p.with_bias; ++b) bias[target[b]] = T(0.5);

  Values loss(size_t(p.rows)), dstate(size_t(p.rows * p.dim), 0), dtable(size_t(p.items * p.dim), 0);
  Values logits(size_t(p.items), 0);
  for (int64_t b = 0; b < p.rows; ++b) {
    double largest = -HUGE_VAL, sum = 0;
    for (int64_t v = 0; v < p.items; ++v) {
      double logit = p.with_bias ? double(bias[v]) : 0;
      for (int64_t d = 0; d < p.dim; ++d)
        logit += double(state[b * p.dim + d]) * double(table[v * p.dim + d]);
      logits[size_t(v)] = logit;
      if (logit > largest) largest = logit;
    }
    for (const double logit : logits) sum += std::exp(logit - largest);
    loss[size_t(b)] = std::log(sum) + largest - logits[size_t(target[b])];
    for (int64_t v = 0; v < p.items && p.backward; ++v) {
      const double g = double(weight[b]) * (std::exp(logits[size_t(v)] - largest) / sum - (v == target[b]));
      for (int64_t d = 0; d < p.dim; ++d) {
        dstate[size_t(b * p.dim + d)] += g * double(table[v * p.dim + d]);
        dtable[size_t(v * p.dim + d)] += g * double(state[b * p.dim + d]);
      }
    }
  }

  const auto run = [&](const Result<T>& to, int threads) {
    for (const Array<T>* array : {&to.loss, &to.dstate, &to.dtable}) array->poison(threads);
    CatalogueCrossEntropy call;
    call.is_double = sizeof(T) == 8, call.rows = p.rows, call.dim = p.dim, call.items = p.items;
    call.threads = threads, call.state = state.data(), call.table = table.data(), call.target = target.data();
    call.bias = p.with_bias ? bias.data() : nullptr, call.weight = p.backward ? weight.data() : nullptr;
    call.loss = to.loss.data();
    call.dstate = to.dstate.count() > 0 || (p.backward && p.of_state) ? to.dstate.data() : nullptr;
    call.dtable = to.dtable.count() > 0 ? to.dtable.data() : nullptr;
    const Array<char> workspace(SOLID_IN_USE(catalogue_cross_entropy_workspace)(call));
    workspace.poison(threads);
    call.workspace = workspace.data();
    tally.expect(SOLID_IN_USE(catalogue_cross_entropy)(call) == Status::kOk, "status");
  };
  const Result<T> first(p, lead);
  tally.for_levels([&](int threads) {
    if (threads == 1) {
      run(first, 1);
      tally.near("loss", first.loss, loss, tolerance);
      if (first.dstate.count()) tally.near("dstate", first.dstate, dstate, tolerance);
      if (first.dtable.count()) tally.near("dtable", first.dtable, dtable, tolerance);
      for (const Array<T>* array : {&first.loss, &first.dstate, &first.dtable}) tally.collect(*array);
      return;
    }
    const Result<T> again(p, lead);
    run(again, threads);
    tally.same("loss", again.loss, first.loss);
    tally.same("dstate", again.dstate, first.dstate);
    tally.same("dtable", again.dtable, first.dtable);
  });
}

}  // namespace

void check_catalogue_cross_entropy(Tally& tally, Random random) {
  Problem p;
  p.rows = random.pick({0, 1, 2, 5, 15, 16, 17, 33, 47, 48, 49});
  p.dim = random.size();
  p.items = random.pick({1, 2, 17, 95, 96, 97, 191, 192, 193, 200, 400});
  if (random.chance(10))
    p.rows = random.pick({191, 192, 193, 400}), p.dim = random.pick({1, 3, 8}), p.items = 100;
  if (random.chance(5)) p.rows = 48, p.dim = 16, p.items = 7000;  // enough work for several threads
  p.with_bias = random.chance(50), p.backward = random.chance(75);
  p.of_state = random.chance(80), p.of_table = !p.of_state || random.chance(80);
  const bool wide = random.chance(30);
  tally.shape = std::string("catalogue_cross_entropy ") + (wide ? "float64" : "float32") +
                " B=" + std::to_string(p.rows) + " D=" + std::to_string(p.dim) +
                " V=" + std::to_string(p.items) + (p.with_bias ? " bias" : "") +
                (p.backward ? "" : " forward") + (p.of_state ? "" : " table alone") +
                (p.of_table ? "" : " state alone");
  if (wide)
    check_type<double>(tally, random, p, 1e-12);
  else
    check_type<float>(tally, random, p, 2e-5);
}

}  // namespace solid::check
