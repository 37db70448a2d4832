// The nearest codebook entry of every row, with the rows' sums by code (segment_sum.h) on request.
//
//   index_i = argmin_k sum_d (x_id - c_kd)^2      lowest k on a tie
//   quantized_i = c_index_i,  distance_i = sum_d (x_id - quantized_id)^2
//
// Shapes: N rows, K >= 1 codes, D >= 1. x [N, D] with rows `x_stride` elements apart; codebook [K, D],
// quantized [N, D] and sums [K, D] dense; mask, index, distance [N]; counts [K]. Types: all float, or all
// double.
//
// What is compared is the sum of squared differences, computed in x's type one component after the other,
// fused where the processor can: d(index_i) <= d(nearest) (1 + (2 D + 6) u) with u half an epsilon, wherever
// rows and codes lie. The search goes by the costs ||c_k||^2 / 2 - <x_i, c_k>, half the work, and compares
// differences only where the costs' rounding could hide the answer; so results do not depend on which way
// they were found, nor on a lower-precision pass that may come first (nearest_code_cpu_screen.h).
//
// Ties: equal sums give the lowest index; duplicates of a code tie exactly. NaN: a code whose distance is not
// below +infinity (NaN, overflow) is never chosen; index 0 when no code is left. Masked rows (mask false):
// index 0, zeros, distance 0, in no sum; they are skipped, not computed. Statistics leave out rows whose
// distance is not finite. Sums are added in the order of the rows.
//
// Nothing of size N x K is written, and all results are bitwise the same for any number of threads.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/status.h"

namespace solid {

struct NearestCode {
  const void* x = nullptr;
  int64_t x_stride = 0;
  int64_t rows = 0;  // N
  int64_t dim = 0;   // D
  const void* codebook = nullptr;
  int64_t num_codes = 0;       // K
  const bool* mask = nullptr;  // null: every row is valid
  void* workspace = nullptr;   // nearest_code_workspace elements
  int64_t* index = nullptr;
  void* quantized = nullptr;
  void* distance = nullptr;
  int64_t* counts = nullptr;  // null: not wanted
  void* sums = nullptr;       // null: not wanted; if wanted, counts are too
  int threads = 1;
};

// Elements of workspace. Codes are packed in whole cache lines, and again, at half precision, for screening:
// O(K D), the same for every instruction set.
inline constexpr int64_t kCodeAlign = 16;

constexpr int64_t nearest_code_workspace(int64_t num_codes, int64_t dim, int64_t element_size) {
  const int64_t padded = (num_codes + kCodeAlign - 1) / kCodeAlign * kCodeAlign;
  return padded * (dim + 1) + (element_size == 4 ? padded * (dim / 2 + 3) : 0);
}

#define SOLID_DECLARE(level)                           \
  namespace level {                                    \
  Status nearest_code_float(const NearestCode& args);  \
  Status nearest_code_double(const NearestCode& args); \
  }
SOLID_FOR_EACH_ISA(SOLID_DECLARE)
#undef SOLID_DECLARE

}  // namespace solid
