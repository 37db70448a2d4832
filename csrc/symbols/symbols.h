// The vectors of a sequence's symbols, from rows that were projected once for each symbol and each age.
//
//   h[b, l] = tanh(symbol[s] + age[a])  for s = sequences[b, l] > 0,  a = max(n_b - 1 - l, 0),
//   n_b positions of b with s > 0;  h[b, l] = 0 for s = 0
//
// Shapes: sequences [B, L] of 0 .. S - 1, symbol [S, D] or, looked up before, [B, L, D], age [L, D] or
// longer, h [B, L, D]; dense. All float, or all double; tanh as in common/vectors.h.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/status.h"

namespace solid {

struct Symbols {
  int64_t batch = 0;   // B
  int64_t length = 0;  // L
  int64_t dim = 0;     // D
  bool looked_up = false;
  const int64_t* sequences = nullptr;
  const void* symbol = nullptr;
  const void* age = nullptr;
  void* h = nullptr;
  int threads = 1;
};

#define SOLID_DECLARE(level)                     \
  namespace level {                              \
  Status symbols_float(const Symbols& symbols);  \
  Status symbols_double(const Symbols& symbols); \
  }
SOLID_FOR_EACH_ISA(SOLID_DECLARE)
#undef SOLID_DECLARE

}  // namespace solid
