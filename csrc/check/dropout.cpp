// dropout against the definition, exactly.
#include "dropout/dropout.h"

#include "check/check.h"

namespace solid::check {
namespace {

uint64_t mix(uint64_t x) {
  x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF;
  x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF;
  return x ^ (x >> 16);
}

template <class T>
void check_type(Tally& tally, Random& random, int64_t count) {
  const int64_t lead = random.below(2);
  const uint64_t key = random.next(), low = key & 0xFFFFFFFF, high = key >> 32;
  const uint32_t threshold = uint32_t(random.next() >> 32);
  const double scale = 1 + double(random.below(8));
  const int64_t first = random.pick({0, 0, 1, 8191, 8192, 123457, (int64_t(1) << 32) - 5});
  Array<T> x(count, lead), expected(count, lead);
  for (int64_t i = 0; i < count; ++i) {
    x[i] = T(random.uniform());
    const uint64_t number = uint64_t(first + i), of_number = (number & 0xFFFFFFFF) ^ low;
    const uint64_t of_key = (high + (number >> 32) * 0x9E3779B9) & 0xFFFFFFFF;
    expected[i] = x[i] * (mix(mix(of_number) ^ of_key) >= threshold ? T(scale) : T(0));
  }
  tally.for_levels([&](int threads) {
    const Array<T> y(count, lead);
    y.poison(threads);
    Dropout call;
    call.count = count, call.first = first, call.x = x.data(), call.key = &key, call.threshold = threshold,
    call.scale = scale;
    call.y = y.data(), call.threads = threads;
    const auto kernel = sizeof(T) == 8 ? SOLID_IN_USE(dropout_double) : SOLID_IN_USE(dropout_float);
    tally.expect(kernel(call) == Status::kOk, "status");
    tally.same("y", y, expected);
    tally.collect(y);
  });
}

}  // namespace

void check_dropout(Tally& tally, Random random) {
  const int64_t count = random.pick({0, 1, 2, 33, 8191, 8192, 8193, 20000});
  const bool wide = random.chance(30);
  tally.shape = std::string("dropout ") + (wide ? "float64" : "float32") + " N=" + std::to_string(count);
  if (wide)
    check_type<double>(tally, random, count);
  else
    check_type<float>(tally, random, count);
}

}  // namespace solid::check
