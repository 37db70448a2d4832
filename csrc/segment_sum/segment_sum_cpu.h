// What segment_sum and nearest_code's statistics share on the CPU.
#pragma once

#include <cstdint>

#include "common/parallel.h"

namespace solid::SOLID_ISA {
namespace {

// Rows are added to their codes in the order of the rows: codes, not rows, are divided among the blocks.
template <class T>
void sum_by_code(const T* values, int64_t stride, int64_t rows, int64_t dim, const int64_t* index,
                 const bool* mask, const T* distance, int64_t num_codes, int64_t* counts, T* sums,
                 int threads) {
  int64_t blocks =
      1;  // a power of two; neighbouring codes are often used alike, so they go to different blocks
  while (blocks < threads && blocks < num_codes) blocks *= 2;
  for_each_block(blocks, threads, [=](int64_t block) {
    for (int64_t code = block; code < num_codes; code += blocks) {
      if (counts != nullptr) counts[code] = 0;
      if (sums != nullptr)
        for (int64_t d = 0; d < dim; ++d) sums[code * dim + d] = 0;
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t code = index[row];
      if ((code & (blocks - 1)) != block || (mask != nullptr && !mask[row])) continue;
      if (distance != nullptr && !(distance[row] - distance[row] == 0)) continue;  // NaN or infinite
      if (counts != nullptr) ++counts[code];
      if (sums == nullptr) continue;
      T* to = sums + code * dim;
      const T* from = values + row * stride;
      for (int64_t d = 0; d < dim; ++d) to[d] += from[d];
    }
  });
}

}  // namespace
}  // namespace solid::SOLID_ISA
