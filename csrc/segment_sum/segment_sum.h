// Sums of rows by code, in the order of the rows:
//
//   sums_k = sum of values_i over the rows i with index_i = k and mask_i,  counts_k = their number
//
// Shapes: N rows, D components, K >= 1 codes. values [N, D] with rows `stride` elements apart; sums [K, D]
// dense; index, mask [N]; counts [K]. values and sums are float, or double. Codes without a row get zero. NaN
// and infinity are added as they come. Results are bitwise the same for any number of threads: codes, not
// rows, are divided among them.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/status.h"

namespace solid {

struct SegmentSum {
  const void* values = nullptr;  // [N, D]
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t dim = 0;
  const int64_t* index = nullptr;  // [N] in 0 .. num_codes - 1
  const bool* mask = nullptr;      // null: every row counts
  int64_t num_codes = 0;
  int64_t* counts = nullptr;  // [K], null: not wanted
  void* sums = nullptr;       // [K, D], null: not wanted
  int threads = 1;
};

#define SOLID_DECLARE(level)                         \
  namespace level {                                  \
  Status segment_sum_float(const SegmentSum& args);  \
  Status segment_sum_double(const SegmentSum& args); \
  }
SOLID_FOR_EACH_ISA(SOLID_DECLARE)
#undef SOLID_DECLARE

}  // namespace solid
