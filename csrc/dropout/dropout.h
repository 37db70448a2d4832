// Dropout by a counter-based generator.
//
//   y[i] = x[i] * (draw(first + i, key) >= threshold ? scale : 0)
//   draw(i, key) = mix(mix(i_low ^ key_low) ^ (key_high + i_high * 0x9E3779B9))
//
// in 32-bit unsigned arithmetic, `low` and `high` being halves of 64 bits and mix C. Wellons' lowbias32. Each
// element's draw depends on its number and the key alone: the same for any number of threads and on every
// level, and made again for the gradient, which is this operation on the gradient of y. A part of an array
// that begins at its element `first` gets the draws that it has in the whole.
//
// Shapes: x, y of `count` elements, dense; y may be x. All float, or all double.
// NaN and infinity: as the formula has them; a dropped one is NaN.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/status.h"

namespace solid {

struct Dropout {
  int64_t count = 0;
  int64_t first = 0;  // the number of x's first element, >= 0
  const void* x = nullptr;
  const uint64_t* key = nullptr;
  uint32_t threshold = 0;  // of 2^32: the share that is dropped
  double scale = 1;
  void* y = nullptr;
  int threads = 1;
};

#define SOLID_DECLARE(level)                     \
  namespace level {                              \
  Status dropout_float(const Dropout& dropout);  \
  Status dropout_double(const Dropout& dropout); \
  }
SOLID_FOR_EACH_ISA(SOLID_DECLARE)
#undef SOLID_DECLARE

}  // namespace solid
