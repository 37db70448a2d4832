// Products of 32 x 32 tiles, 32 deep, by one warp: plain fused multiply-adds, or matrix units in TF32.
//
// Operands lie in shared memory. The left one is [depth][rows]; the right one [depth][columns], or transposed
// [columns][depth]. A thread holds kRows x kColumns results: row(lane, r), column(lane, c). kRows lanes hold
// the same rows. Pitches: the right operand's is kRightPitch modulo 32, the left one's 8 (4 where the right
// one is transposed), so that no two lanes of a warp meet in a bank.
#pragma once

#include "dynamic_linear/dynamic_linear_cuda.h"

namespace solid {

constexpr int kLeftPitch = 8, kLeftPitchTransposed = 4;  // modulo 32

struct PlainMath {
  static constexpr int kRows = 8, kColumns = 4;
  static constexpr int kRun = 4;  // rows r .. r + kRun - 1 are neighbours
  static constexpr int kRightPitch = 4;
  static constexpr int kMapBlocks = 2;  // per multiprocessor of DynamicMapTiles; with three sm_80 spills

  static SOLID_DEVICE int row(int lane, int r) { return lane / 8 * 8 + r; }
  template <bool transposed>
  static SOLID_DEVICE int column(int lane, int c) {
    return transposed ? lane % 8 + 8 * c : lane % 8 * 4 + c;
  }

  // What `multiply` makes of a factor of its left operand; who has done it passes `rounded`.
  static SOLID_DEVICE float round(float value) { return value; }

  // sums[n] += left x right[n] for the tiles that begin at left_at and right_at[n].
  template <bool transposed, bool rounded = false, int count, class Block, class Shared>
  static SOLID_DEVICE void multiply(Block& block, const Shared& left, int left_at, int left_pitch,
                                    const Shared& right, const int (&right_at)[count], int right_pitch,
                                    float (&sums)[count][kRows][kColumns]) {
    const int lane = block.lane(), from = left_at + row(lane, 0);
    if constexpr (transposed) {
#pragma unroll 1
      for (int s = 0; s < kTile; s += 4) {
        Pack<float, 4> b[count][kColumns];
#pragma unroll
        for (int n = 0; n < count; ++n)
#pragma unroll
          for (int c = 0; c < kColumns; ++c)
            b[n][c] = right.template pack<4>(right_at[n] + column<true>(lane, c) * right_pitch + s);
#pragma unroll
        for (int d = 0; d < 4; ++d) {
          Pack<float, 4> a[2];
#pragma unroll
          for (int half = 0; half < 2; ++half)
            a[half] = left.template pack<4>(from + (s + d) * left_pitch + 4 * half);
#pragma unroll
          for (int n = 0; n < count; ++n)
#pragma unroll
            for (int c = 0; c < kColumns; ++c)
#pragma unroll
              for (int r = 0; r < kRows; ++r)
                sums[n][r][c] = fused(a[r / 4].at[r % 4], b[n][c].at[d], sums[n][r][c]);
        }
      }
    } else {
#pragma unroll 2
      for (int s = 0; s < kTile; ++s) {
        Pack<float, 4> a[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          a[half] = left.template pack<4>(from + s * left_pitch + 4 * half);
#pragma unroll
        for (int n = 0; n < count; ++n) {
          const auto b = right.template pack<4>(right_at[n] + s * right_pitch + column<false>(lane, 0));
#pragma unroll
          for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int c = 0; c < kColumns; ++c)
              sums[n][r][c] = fused(a[r / 4].at[r % 4], b.at[c], sums[n][r][c]);
        }
      }
    }
  }
};

struct Tf32Math {
  static constexpr int kRows = 4, kColumns = 8;
  static constexpr int kRun = 1;
  static constexpr int kRightPitch = 8;
  static constexpr int kMapBlocks = 3;

  static SOLID_DEVICE int row(int lane, int r) { return r / 2 * 16 + r % 2 * 8 + lane / 4; }
  template <bool transposed>
  static SOLID_DEVICE int column(int lane, int c) {
    return c / 2 * 8 + lane % 4 * 2 + c % 2;
  }

  static SOLID_DEVICE float round(float value) { return bit_cast<float>(to_tf32(value)); }

  // As PlainMath's. The eight depths of one matrix product may come in any order that both operands share: a
  // transposed right operand is read by pairs, so its lane t takes depths 2 t and 2 t + 1 in place of t and t
  // + 4.
  template <bool transposed, bool rounded = false, int count, class Block, class Shared>
  static SOLID_DEVICE void multiply(Block& block, const Shared& left, int left_at, int left_pitch,
                                    const Shared& right, const int (&right_at)[count], int right_pitch,
                                    float (&sums)[count][kRows][kColumns]) {
    const int g = block.lane() / 4, t = block.lane() % 4;
    const int first = transposed ? 2 * t : t, second = transposed ? 2 * t + 1 : t + 4;
#pragma unroll 1
    for (int s = 0; s < kTile; s += 8) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = left_at + m * 16 + half * 8 + g;
          const float one = left[at + (s + first) * left_pitch], other = left[at + (s + second) * left_pitch];
          a[m][half] = rounded ? bit_cast<uint32_t>(one) : to_tf32(one);
          a[m][half + 2] = rounded ? bit_cast<uint32_t>(other) : to_tf32(other);
        }
#pragma unroll
      for (int n = 0; n < count; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          uint32_t b[2];
          if constexpr (transposed) {
            const auto pair = right.template pack<2>(right_at[n] + (j * 8 + g) * right_pitch + s + first);
            b[0] = to_tf32(pair.at[0]), b[1] = to_tf32(pair.at[1]);
          } else {
            b[0] = to_tf32(right[right_at[n] + (s + first) * right_pitch + j * 8 + g]);
            b[1] = to_tf32(right[right_at[n] + (s + second) * right_pitch + j * 8 + g]);
          }
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            float d[4];
            const float c[4] = {sums[n][2 * m][2 * j], sums[n][2 * m][2 * j + 1], sums[n][2 * m + 1][2 * j],
                                sums[n][2 * m + 1][2 * j + 1]};
            block.warp_product_tf32(d, a[m], b, c);
            sums[n][2 * m][2 * j] = d[0], sums[n][2 * m][2 * j + 1] = d[1];
            sums[n][2 * m + 1][2 * j] = d[2], sums[n][2 * m + 1][2 * j + 1] = d[3];
          }
        }
    }
  }
};

// Sums over the kRows lanes that hold the same rows: afterwards the lane holds that of row(lane, lane %
// kRows). Each step halves the rows that a lane keeps, so it takes kRows - 1 exchanges in place of kRows
// log2(kRows).
template <class Block, int rows>
SOLID_DEVICE float sum_over_columns(Block& block, float (&sums)[rows]) {
  const int lane = block.lane();
#pragma unroll
  for (int width = rows / 2; width > 0; width /= 2) {
    const bool upper = (lane & width) != 0;
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const float given = upper ? sums[j] : sums[j + width], kept = upper ? sums[j + width] : sums[j];
      sums[j] = kept + block.warp_xor(given, width);
    }
  }
  return sums[0];
}

// The closed interval; a NaN stays.
template <class T>
SOLID_DEVICE T clipped(T value, T bound) {
  return value > bound ? bound : value < -bound ? -bound : value;
}
template <class T>
SOLID_DEVICE bool inside(T value, T bound) {
  return value <= bound && value >= -bound;
}

}  // namespace solid
