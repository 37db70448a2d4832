// segment_sum against the definition, in float64.
#include "segment_sum/segment_sum.h"

#include "check/check.h"

namespace solid::check {
namespace {

template <class T>
void check_type(Tally& tally, Random& random, int64_t rows, int64_t dim, int64_t num_codes) {
  const int64_t lead = random.below(2), stride = dim + random.pick({0, 3});
  const bool counted = random.chance(70), summed = !counted || random.chance(70);
  Array<T> values(rows > 0 ? (rows - 1) * stride + dim : 0, lead);
  Array<int64_t> index(rows);
  Array<bool> mask(random.chance(50) ? rows : 0);
  std::vector<double> counts(size_t(num_codes), 0), sums(size_t(num_codes * dim), 0);
  for (int64_t i = 0; i < values.count(); ++i) values[i] = T(random.uniform());
  for (int64_t i = 0; i < mask.count(); ++i) mask[i] = random.chance(60);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t code = index[i] = random.below(num_codes);
    if (mask.count() && !mask[i]) continue;
    counts[size_t(code)] += 1;
    for (int64_t d = 0; d < dim; ++d) sums[size_t(code * dim + d)] += double(values[i * stride + d]);
  }
  const Array<int64_t> first_counts(counted ? num_codes : 0);
  const Array<T> first_sums(summed ? num_codes * dim : 0, lead);
  const auto run = [&](const Array<int64_t>& to_counts, const Array<T>& to_sums, int threads) {
    to_counts.poison(threads);
    to_sums.poison(threads);
    SegmentSum call;
    call.values = values.data(), call.stride = stride, call.rows = rows, call.dim = dim;
    call.index = index.data(), call.mask = mask.count() ? mask.data() : nullptr, call.num_codes = num_codes;
    call.counts = counted ? to_counts.data() : nullptr, call.sums = summed ? to_sums.data() : nullptr;
    call.threads = threads;
    const auto kernel = sizeof(T) == 8 ? SOLID_IN_USE(segment_sum_double) : SOLID_IN_USE(segment_sum_float);
    tally.expect(kernel(call) == Status::kOk, "status");
  };
  tally.for_levels([&](int threads) {
    if (threads == 1) {
      run(first_counts, first_sums, 1);
      for (int64_t k = 0; k < first_counts.count(); ++k)
        tally.expect(double(first_counts[k]) == counts[size_t(k)], "counts[" + std::to_string(k) + "]");
      tally.near("sums", first_sums, sums, sizeof(T) == 4 ? 2e-5 : 1e-12);
      tally.collect(first_sums);
      return;
    }
    const Array<int64_t> again_counts(first_counts.count());
    const Array<T> again_sums(first_sums.count(), lead);
    run(again_counts, again_sums, threads);
    tally.same("counts", again_counts, first_counts);
    tally.same("sums", again_sums, first_sums);
  });
}

}  // namespace

void check_segment_sum(Tally& tally, Random random) {
  const int64_t rows = random.pick({0, 1, 2, 33, 200}), dim = random.size(), num_codes = random.size();
  const bool wide = random.chance(30);
  tally.shape = std::string("segment_sum ") + (wide ? "float64" : "float32") + " N=" + std::to_string(rows) +
                " K=" + std::to_string(num_codes) + " D=" + std::to_string(dim);
  if (wide)
    check_type<double>(tally, random, rows, dim, num_codes);
  else
    check_type<float>(tally, random, rows, dim, num_codes);
}

}  // namespace solid::check
