// nearest_code against the definition, in float64.
#include "nearest_code/nearest_code.h"

#include <cmath>

#include "check/check.h"

namespace solid::check {
namespace {

constexpr double kInfinity = HUGE_VAL;

struct Lookup {
  int64_t rows, dim, num_codes, stride;
  bool exact;  // inputs on a lattice: costs are exact, and so are ties
  bool counted, summed;
};

template <class T>
struct Result {
  Array<int64_t> index;
  Array<T> quantized, distance;
  Array<int64_t> counts;
  Array<T> sums;

  Result(const Lookup& s, int64_t lead)
      : index(s.rows),
        quantized(s.rows * s.dim, lead),
        distance(s.rows, lead),
        counts(s.counted ? s.num_codes : 0),
        sums(s.summed ? s.num_codes * s.dim : 0, lead) {}
};

// Squared distances in float64, and the code that the contract asks for: the first of the least ones below
// +infinity, in T.
template <class T>
int64_t nearest(const Lookup& s, const T* x, const Array<T>& codebook, std::vector<double>& distances) {
  int64_t best = 0;
  double least = kInfinity;
  for (int64_t k = 0; k < s.num_codes; ++k) {
    double distance = 0;
    for (int64_t d = 0; d < s.dim; ++d) {
      const double difference = double(x[d]) - double(codebook[k * s.dim + d]);
      distance += difference * difference;
    }
    distances[size_t(k)] = distance;
    if (distance < least && T(distance) < T(kInfinity)) least = distance, best = k;
  }
  return best;
}

template <class T>
void compare(Tally& tally, const Lookup& s, const Array<T>& x, const Array<T>& codebook,
             const Array<bool>& mask, const std::vector<int64_t>& expected,
             const std::vector<std::vector<double>>& distances, const Result<T>& found) {
  const double epsilon = double(s.dim + 8) * (sizeof(T) == 4 ? 0x1p-23 : 0x1p-52);
  std::vector<double> counts(size_t(s.num_codes), 0), sums(size_t(s.num_codes * s.dim), 0);
  for (int64_t i = 0; i < s.rows; ++i) {
    const std::string row = " of row " + std::to_string(i);
    const bool valid = mask.count() == 0 || mask[i];
    const int64_t k = found.index[i];
    if (k < 0 || k >= s.num_codes) return tally.fail("index" + row + ": " + std::to_string(k));
    const T* const at = x.data() + i * s.stride;
    double distance = 0;
    for (int64_t d = 0; d < s.dim; ++d) {
      const T c = codebook[k * s.dim + d], q = found.quantized[i * s.dim + d];
      const T should = valid ? c : T(0);
      tally.expect(q == should || (q != q && should != should), "quantized" + row);
      distance += (double(at[d]) - double(c)) * (double(at[d]) - double(c));
    }
    if (!valid) {
      tally.expect(k == 0 && found.distance[i] == 0, "masked" + row);
      continue;
    }
    const int64_t best = expected[size_t(i)];
    const double chosen = distances[size_t(i)][size_t(k)], least = distances[size_t(i)][size_t(best)];
    const bool finite = least - least == 0 && !s.exact;
    tally.expect(finite ? chosen <= least * (1 + 2 * epsilon) : k == best,
                 "index" + row + ": expected " + std::to_string(best) + ", got " + std::to_string(k));
    const double off = std::fabs(double(found.distance[i]) - distance);
    tally.expect(distance - distance == 0 ? off <= epsilon * (distance + 1e-30)
                                          : !(found.distance[i] - found.distance[i] == 0),
                 "distance" + row);
    if (!(distance - distance == 0)) continue;
    counts[size_t(k)] += 1;
    for (int64_t d = 0; d < s.dim; ++d) sums[size_t(k * s.dim + d)] += double(at[d]);
  }
  for (int64_t k = 0; k < found.counts.count(); ++k)
    tally.expect(double(found.counts[k]) == counts[size_t(k)], "counts[" + std::to_string(k) + "]");
  tally.near("sums", found.sums, sums, sizeof(T) == 4 ? 2e-5 : 1e-12);
}

template <class T>
void check_type(Tally& tally, Random& random, const Lookup& s, bool odd) {
  const int64_t lead = random.below(2);
  Array<T> x(s.rows > 0 ? (s.rows - 1) * s.stride + s.dim : 0, lead);
  Array<T> codebook(s.num_codes * s.dim, lead);
  Array<bool> mask(random.chance(50) ? s.rows : 0);
  const double shift = s.exact ? 0 : random.pick({0, 0, 0, 30, 1000});
  const auto draw = [&] { return T(s.exact ? double(random.between(-3, 3)) : random.uniform() + shift); };
  const double odds[] = {NAN, kInfinity, -kInfinity, 0};
  for (int64_t i = 0; i < x.count(); ++i) x[i] = draw();
  for (int64_t i = 0; i < codebook.count(); ++i) codebook[i] = draw();
  for (int64_t i = 0; i < mask.count(); ++i) mask[i] = random.chance(60);
  // Rows that a chosen code lies on, duplicates among the codes, and numbers that are none.
  for (int64_t i = 0; i < s.rows; i += 3) {
    const int64_t k = random.below(s.num_codes);
    for (int64_t d = 0; d < s.dim && random.chance(90); ++d) x[i * s.stride + d] = codebook[k * s.dim + d];
  }
  for (int64_t n = s.num_codes / 8; n > 0; --n) {
    const int64_t from = random.below(s.num_codes), to = random.below(s.num_codes);
    for (int64_t d = 0; d < s.dim; ++d) codebook[to * s.dim + d] = codebook[from * s.dim + d];
  }
  for (int n = 0; odd && n < 4; ++n) {
    if (x.count()) x[random.below(x.count())] = T(odds[random.below(4)]);
    codebook[random.below(codebook.count())] = T(odds[random.below(4)]);
  }
  std::vector<int64_t> expected(size_t(s.rows), 0);
  std::vector<std::vector<double>> all(size_t(s.rows), std::vector<double>(size_t(s.num_codes)));
  for (int64_t i = 0; i < s.rows; ++i)
    expected[size_t(i)] = nearest(s, x.data() + i * s.stride, codebook, all[size_t(i)]);

  const Result<T> first(s, lead);
  const auto run = [&](const Result<T>& result, int threads) {
    const Array<T> workspace(nearest_code_workspace(s.num_codes, s.dim, sizeof(T)));
    for (const auto* values : {&result.quantized, &result.distance, &result.sums, &workspace})
      values->poison(threads);
    for (const auto* numbers : {&result.index, &result.counts}) numbers->poison(threads);
    NearestCode call;
    call.x = x.data(), call.x_stride = s.stride, call.rows = s.rows, call.dim = s.dim;
    call.codebook = codebook.data(), call.num_codes = s.num_codes;
    call.mask = mask.count() ? mask.data() : nullptr;
    call.workspace = workspace.data(), call.index = result.index.data();
    call.quantized = result.quantized.data(), call.distance = result.distance.data();
    call.counts = s.counted ? result.counts.data() : nullptr;
    call.sums = s.summed ? result.sums.data() : nullptr;
    call.threads = threads;
    const auto kernel = sizeof(T) == 8 ? SOLID_IN_USE(nearest_code_double) : SOLID_IN_USE(nearest_code_float);
    tally.expect(kernel(call) == Status::kOk, "status");
  };
  tally.for_levels([&](int threads) {
    if (threads == 1) {
      run(first, 1);
      compare(tally, s, x, codebook, mask, expected, all, first);
      tally.collect(first.quantized);
      tally.collect(first.distance);
      tally.collect(first.sums);
      return;
    }
    const Result<T> again(s, lead);
    run(again, threads);
    tally.same("index", again.index, first.index);
    tally.same("quantized", again.quantized, first.quantized);
    tally.same("distance", again.distance, first.distance);
    tally.same("counts", again.counts, first.counts);
    tally.same("sums", again.sums, first.sums);
  });
}

}  // namespace

void check_nearest_code(Tally& tally, Random random) {
  Lookup s;
  s.rows = random.pick({0, 1, 2, 5, 6, 7, 13, 95, 96, 97, 191, 192, 193, 290});
  s.dim = random.size();
  s.num_codes = random.pick({1, 2, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 96, 127, 128, 129, 130, 200, 321});
  if (random.chance(4))
    s.num_codes = random.pick({2049, 2112, 2200, 4200}), s.rows = 193;  // wide slots, packing in parallel
  if (random.chance(4))
    s.dim = random.pick({519, 530, 1040}), s.rows = 200, s.num_codes = 140;  // fewer rows screened at a time
  s.stride = s.dim + random.pick({0, 0, 1, 5});
  s.exact = random.chance(40);
  s.counted = random.chance(60);
  s.summed = s.counted && random.chance(70);
  const bool odd = random.chance(30), wide = random.chance(25);
  tally.shape = std::string("nearest_code ") + (wide ? "float64" : "float32") +
                " N=" + std::to_string(s.rows) + " K=" + std::to_string(s.num_codes) +
                " D=" + std::to_string(s.dim) + (s.exact ? " lattice" : "") + (odd ? " odd" : "");
  if (wide)
    check_type<double>(tally, random, s, odd);
  else
    check_type<float>(tally, random, s, odd);
}

}  // namespace solid::check
