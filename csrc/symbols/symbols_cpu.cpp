#include "common/parallel.h"
#include "common/tiles.h"
#include "common/vectors.h"
#include "symbols/symbols.h"

namespace solid::SOLID_ISA {
namespace {

constexpr int64_t kSequences = 64;  // of a block

template <class T>
void embed(const T* symbol, const T* age, int64_t dim, T* h) {
  for (int64_t d = 0; d < dim; d += kLanes<T>) {
    const int64_t left = dim - d;
    store_some(h + d, tanh(load_some(symbol + d, left) + load_some(age + d, left)), left);
  }
}

template <class T>
Status run(const Symbols& s) {
  if (s.batch < 0 || s.length < 0 || s.dim < 1) return Status::kBadArgument;
  const int64_t dim = s.dim;
  for_each_block((s.batch + kSequences - 1) / kSequences, s.threads, [&](int64_t block) {
    for (int64_t b = block * kSequences; b < least((block + 1) * kSequences, s.batch); ++b) {
      const int64_t* sequence = s.sequences + b * s.length;
      int64_t valid = 0;
      for (int64_t l = 0; l < s.length; ++l) valid += sequence[l] > 0;
      for (int64_t l = 0; l < s.length; ++l) {
        const int64_t position = b * s.length + l;
        T* h = static_cast<T*>(s.h) + position * dim;
        if (sequence[l] <= 0) {
          zero(h, dim);
          continue;
        }
        const int64_t row = s.looked_up ? position : sequence[l];
        const int64_t age = valid - 1 - l;
        embed(static_cast<const T*>(s.symbol) + row * dim,
              static_cast<const T*>(s.age) + (age > 0 ? age : 0) * dim, dim, h);
      }
    }
  });
  return Status::kOk;
}

}  // namespace

Status symbols_float(const Symbols& symbols) { return run<float>(symbols); }
Status symbols_double(const Symbols& symbols) { return run<double>(symbols); }

}  // namespace solid::SOLID_ISA
