// Sums and minima over the lanes of a warp, on any block policy. Every lane gets the same bits.
#pragma once

#include "cuda/numbers.h"

namespace solid {

template <class Block, class T>
SOLID_DEVICE T warp_sum(Block& block, T value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += block.warp_xor(value, lanes);
  return value;
}

}  // namespace solid
