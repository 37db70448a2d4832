#include "common/parallel.h"
#include "common/tiles.h"
#include "dropout/dropout.h"

namespace solid::SOLID_ISA {
namespace {

constexpr int64_t kBlock =
    8192;  // elements, a divisor of 2^32: the high half of their numbers is one in a block

SOLID_INLINE uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

// The compiler makes vectors of this loop at every level.
template <class T>
void drop(const T* x, int64_t count, uint32_t number, uint32_t low, uint32_t high, uint32_t threshold,
          T scale, T* y) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t draw = mix(mix((number + uint32_t(i)) ^ low) ^ high);
    y[i] = x[i] * (draw >= threshold ? scale : T(0));
  }
}

template <class T>
Status run(const Dropout& d) {
  if (d.count < 0 || d.first < 0) return Status::kBadArgument;
  const uint64_t key = *d.key;
  const int64_t before = d.first / kBlock, end = d.first + d.count;  // blocks of numbers, not of x
  for_each_block(d.count > 0 ? (end + kBlock - 1) / kBlock - before : 0, d.threads, [&](int64_t block) {
    const int64_t start = (before + block) * kBlock, first = start < d.first ? d.first : start;
    const uint32_t high = uint32_t(key >> 32) + uint32_t(uint64_t(first) >> 32) * 0x9E3779B9u;
    drop(static_cast<const T*>(d.x) + (first - d.first), least(start + kBlock, end) - first, uint32_t(first),
         uint32_t(key), high, d.threshold, T(d.scale), static_cast<T*>(d.y) + (first - d.first));
  });
  return Status::kOk;
}

}  // namespace

Status dropout_float(const Dropout& dropout) { return run<float>(dropout); }
Status dropout_double(const Dropout& dropout) { return run<double>(dropout); }

}  // namespace solid::SOLID_ISA
