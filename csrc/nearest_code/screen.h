// Screening at half precision: finds the few codes that can be the nearest one, for an exact re-check.
//
// With x~, c~ rounded to bfloat16, e = ||x - x~|| and E = ||c - c~||, Cauchy and Schwarz give
//   |<x, c> - <x~, c~>| = |<x - x~, c~> + <x, c - c~>| <= e ||c~|| + ||x|| E,
// so that  L = h - <x~, c~> - e ||c~|| - ||x|| E,  h = ||c||^2 / 2,  is a lower bound of the cost h - <x, c>.
// The two last terms are one more pair of components of a product of bfloat16 pairs (each factor rounded up),
// and L costs D / 2 + 1 instructions for 16 codes instead of D. Rounding of float32 sums, in L and in the
// exact cost, is at most eta (h + ||x|| ||c||) with eta = (D + 6) 2^-23: h is made smaller and E larger by 4
// eta ||.||. A code is nearest in float32 only if L <= the float32 cost of some code: the code with the least
// L gives a first cost, and whatever lies below it is computed exactly, by the same chain of operations as in
// `tile`. So the results are those of the float32 search, bit by bit.
//
// Lanes: in a panel of P vectors, vector p lane l holds code P l + p, and only the least L of the P vectors
// is kept: a "slot" (panel, lane) stands for P codes that lie side by side in the panel of float32 codes.
// With many panels, a slot spans several.
#pragma once

#include <immintrin.h>

namespace solid::SOLID_ISA {
namespace {

constexpr int kScreenRows = 48;         // rows screened together: their bounds take at most 96 KB
constexpr int kScreenSlots = 32;        // spans of panels, kept per row and lane
constexpr int kScreenWords = 48 * 260;  // pairs of components of all rows; fewer rows if D > 518
constexpr int kBoundStride = (kScreenSlots | 1) * 16;
constexpr int kScreenChecks = 128;  // exact checks queued before they are run; a slot of up to 64 x 128 codes
constexpr int64_t kFewestRows = 192;  // packing the pairs takes as long as is saved on about 120 rows
constexpr float kHugeNorm = 1e18f;    // products of longer rows could overflow: those are searched exactly
constexpr float kLargestBound = 1e38f;
constexpr float kFloor = 0x1p-50f;  // above what underflow can hide in the norms

struct Screen {
  const float* packed;   // [panel][D + 1][codes], as in nearest_code_cpu.cpp
  const int32_t* pairs;  // [panel][words + 1][codes]: row 0 is h, then -(c~ pairs), last -(||c~||, E)
  int64_t dim, words, padded;
  int64_t panels_per_slot;
  int rows;  // screened together, a multiple of the tile's 6
};

constexpr int64_t screen_words(int64_t dim) { return (dim + 1) / 2 + 1; }

// False: not worth it. Few rows do not pay for packing the pairs, few codes or components leave too little to
// save, very many components no room.
bool plan_screen(const float* packed, const int32_t* pairs, int64_t count, int64_t dim, int64_t padded,
                 Screen* screen) {
  const int64_t words = screen_words(dim);
  const int64_t panels = (padded + 63) / 64;
  const int64_t rows = kScreenWords / words / 6 * 6;
  *screen = Screen{packed,
                   pairs,
                   dim,
                   words,
                   padded,
                   (panels + kScreenSlots - 1) / kScreenSlots,
                   int(rows < kScreenRows ? rows : kScreenRows)};
  return count >= kFewestRows && dim >= 16 && padded >= 128 && rows >= 6 &&
         screen->panels_per_slot <= kScreenChecks;
}

// The masked forms of some intrinsics: the plain ones pass GCC 12 an undefined operand, which it warns of.
constexpr __mmask16 kAll = 0xffff;

SOLID_INLINE __m512 least_of(__m512 a, __m512 b) { return _mm512_maskz_min_ps(kAll, a, b); }
SOLID_INLINE __m512 root_of(__m512 a) { return _mm512_maskz_sqrt_ps(kAll, a); }
SOLID_INLINE __m512i widen(__m256i halves) { return _mm512_maskz_cvtepu16_epi32(kAll, halves); }
SOLID_INLINE __m512i to_high(__m512i words) { return _mm512_maskz_slli_epi32(kAll, words, 16); }

// Folds the lanes in halves; the result is in lane 0.
template <class Operation>
SOLID_INLINE float fold(__m512 v, const Operation& operation) {
  v = operation(v, _mm512_maskz_shuffle_f32x4(kAll, v, v, 0x4e));
  v = operation(v, _mm512_maskz_shuffle_f32x4(kAll, v, v, 0xb1));
  v = operation(v, _mm512_maskz_permute_ps(kAll, v, 0x4e));
  v = operation(v, _mm512_maskz_permute_ps(kAll, v, 0xb1));
  return v[0];
}

SOLID_INLINE float sum_of(__m512 v) {
  return fold(v, [](__m512 a, __m512 b) { return a + b; });
}

SOLID_INLINE float least_lane(__m512 v) {
  return fold(v, [](__m512 a, __m512 b) { return least_of(a, b); });
}

SOLID_INLINE __m512i to_words(__m512 low, __m512 high) {
  const __m512i l = widen((__m256i)_mm512_cvtneps_pbh(low));
  const __m512i h = widen((__m256i)_mm512_cvtneps_pbh(high));
  return _mm512_or_si512(l, to_high(h));
}

SOLID_INLINE __m512 low_of(__m512i words) { return _mm512_castsi512_ps(to_high(words)); }
SOLID_INLINE __m512 high_of(__m512i words) {
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000))));
}

// A panel of pairs from its panel of float32 codes. Codes without a finite norm are never chosen: bound
// +infinity.
void screen_panel(const float* panel, int64_t dim, int64_t width, int32_t* to) {
  const int vectors = int(width / 16);
  const float eta = float(dim + 6) * 0x1p-23f;
  const int64_t words = screen_words(dim);
  for (int v = 0; v < vectors; ++v) {
    const auto put = [=](int64_t row, __m512i values) {
      alignas(64) int32_t lanes[16];
      _mm512_store_si512(lanes, values);
      for (int i = 0; i < 16; ++i) {
        const int code = v * 16 + i;
        to[row * width + code % vectors * 16 + code / vectors] = lanes[i];
      }
    };
    const __m512 half = _mm512_loadu_ps(panel + v * 16);
    const __mmask16 usable = _mm512_cmp_ps_mask(half, _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
    __m512 norm = _mm512_setzero_ps(), lost = _mm512_setzero_ps();
    for (int64_t j = 1; j < words; ++j) {
      const int64_t d = 2 * j - 1;  // row of the panel
      const __m512 low = _mm512_maskz_loadu_ps(usable, panel + d * width + v * 16);
      const __m512 high =
          d < dim ? _mm512_maskz_loadu_ps(usable, panel + (d + 1) * width + v * 16) : _mm512_setzero_ps();
      const __m512i pair = to_words(-low, -high);
      const __m512 lost_low = low + low_of(pair), lost_high = high + high_of(pair);
      norm += low_of(pair) * low_of(pair) + high_of(pair) * high_of(pair);
      lost += lost_low * lost_low + lost_high * lost_high;
      put(j, pair);
    }
    // Factors a little above 1 cover the rounding of these sums and of the conversion.
    norm = root_of(norm) * 1.01f + kFloor;
    lost = (root_of(lost) + 4 * eta * norm) * 1.01f + kFloor;
    put(words, to_words(-norm, -lost));
    const __m512 bound = least_of(half * (1 - 4 * eta), _mm512_set1_ps(kLargestBound)) - 0x1p-100f;
    put(0, _mm512_castps_si512(_mm512_mask_mov_ps(_mm512_set1_ps(__builtin_inff()), usable, bound)));
  }
}

// x~ in pairs, then (e, ||x||). False: too long, or not a number.
SOLID_INLINE bool screen_row(const float* x, int64_t dim, int32_t* to) {
  __m512 norm = _mm512_setzero_ps(), lost = _mm512_setzero_ps();
  const int64_t words = screen_words(dim) - 1;
  for (int64_t d = 0; d < dim; d += 16) {
    const int64_t left = dim - d;
    const __mmask16 present = left >= 16 ? __mmask16(0xffff) : __mmask16((1u << left) - 1);
    const __m512 component = _mm512_maskz_loadu_ps(present, x + d);
    const __m256i half = (__m256i)_mm512_cvtneps_pbh(component);
    const __m512 difference = component - _mm512_castsi512_ps(to_high(widen(half)));
    norm += component * component;
    lost += difference * difference;
    const int64_t count = words - d / 2;
    _mm256_mask_storeu_epi32(to + d / 2, count >= 8 ? __mmask8(0xff) : __mmask8((1u << count) - 1), half);
  }
  const float squared = sum_of(norm);
  const float length = __builtin_sqrtf(squared) * 1.01f + kFloor;
  const float error = __builtin_sqrtf(sum_of(lost)) * 1.01f + kFloor;
  const __m512i pair = to_words(_mm512_set1_ps(error), _mm512_set1_ps(length));
  to[words] = ((Mask<float>)pair)[0];
  return squared <= kHugeNorm * kHugeNorm;
}

template <int R, int P>
__attribute__((noinline)) void screen_tile(const int32_t* rows, int64_t words, const int32_t* panel,
                                           bool first, float* bounds, int64_t stride) {
  __m512 bound[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) bound[r][p] = _mm512_loadu_ps(panel + p * 16);
  for (int64_t j = 0; j < words; ++j) {
    panel += P * 16;
    __m512i code[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) code[p] = _mm512_loadu_si512(panel + p * 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i pair = _mm512_set1_epi32(rows[r * words + j]);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
        bound[r][p] = _mm512_dpbf16_ps(bound[r][p], (__m512bh)code[p], (__m512bh)pair);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    __m512 least = bound[r][0];
#pragma GCC unroll 8
    for (int p = 1; p < P; ++p) least = least_of(least, bound[r][p]);
    float* to = bounds + r * stride;
    _mm512_store_ps(to, first ? least : least_of(least, _mm512_load_ps(to)));
  }
}

template <int P>
void screen_sweep(int count, const int32_t* rows, int64_t words, const int32_t* panel, bool first,
                  float* bounds, int64_t stride) {
  for (int at = 0; at < count; at += 6, rows += 6 * words, bounds += 6 * stride) {
    switch (count - at) {
      case 1:
        screen_tile<1, P>(rows, words, panel, first, bounds, stride);
        break;
      case 2:
        screen_tile<2, P>(rows, words, panel, first, bounds, stride);
        break;
      case 3:
        screen_tile<3, P>(rows, words, panel, first, bounds, stride);
        break;
      case 4:
        screen_tile<4, P>(rows, words, panel, first, bounds, stride);
        break;
      case 5:
        screen_tile<5, P>(rows, words, panel, first, bounds, stride);
        break;
      default:
        screen_tile<6, P>(rows, words, panel, first, bounds, stride);
        break;
    }
  }
}

// A cost and its code as one integer: less cost first, then the lower code. Branch-free, where a comparison
// of the parts would be mispredicted half the time.
SOLID_INLINE int64_t to_key(float cost, int32_t code) {
  const float no_minus_zero = cost + 0.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &no_minus_zero, sizeof bits);
  const int32_t ordered = bits ^ ((bits >> 31) & 0x7fffffff);
  return int64_t(uint64_t(uint32_t(ordered)) << 32 | uint32_t(code));
}

SOLID_INLINE float cost_of(int64_t key) {
  const int32_t ordered = int32_t(key >> 32);
  const int32_t bits = ordered ^ ((ordered >> 31) & 0x7fffffff);
  float cost;
  __builtin_memcpy(&cost, &bits, sizeof cost);
  return cost;
}

// One lane of one panel to be compared exactly with a row: the panel's codes number .. number + vectors - 1.
struct Check {
  const float* x;
  const float* code;
  int64_t width;
  int32_t number;
  int32_t vectors;
  int32_t row;
};

// The checks of one place, 16 slot + lane; returns how many there are now.
SOLID_INLINE int add_checks(const Screen& s, const float* x, int32_t row, int32_t place, Check* checks,
                            int count) {
  const int64_t slot = place / 16;
  const int lane = place % 16;
  for (int64_t panel = slot * s.panels_per_slot; panel < (slot + 1) * s.panels_per_slot; ++panel) {
    const int64_t first = panel * 64;
    if (first >= s.padded) break;
    const int64_t width = s.padded - first < 64 ? s.padded - first : 64;
    const int32_t at = int32_t(width / 16) * lane;
    checks[count++] =
        Check{x, s.packed + first * (s.dim + 1) + at, width, int32_t(first) + at, int32_t(width / 16), row};
  }
  return count;
}

// Exact costs by the chain of `tile`, four checks in step to hide its latency. May read past a narrow panel:
// into the next one or the pairs. The list is filled up to a multiple of four.
void run_checks(const Screen& s, Check* checks, int count, int64_t* found) {
  for (int filled = count; filled % 4 != 0; ++filled) checks[filled] = checks[0];
  for (int at = 0; at < count; at += 4) {
    const Check* c = checks + at;
    const float *a0 = c[0].code, *a1 = c[1].code, *a2 = c[2].code, *a3 = c[3].code;
    const int64_t w0 = c[0].width, w1 = c[1].width, w2 = c[2].width, w3 = c[3].width;
    const float *x0 = c[0].x, *x1 = c[1].x, *x2 = c[2].x, *x3 = c[3].x;
    __m128 cost[4] = {_mm_loadu_ps(a0), _mm_loadu_ps(a1), _mm_loadu_ps(a2), _mm_loadu_ps(a3)};
    for (int64_t d = 0; d < s.dim; ++d) {
      a0 += w0, a1 += w1, a2 += w2, a3 += w3;
      cost[0] = _mm_fnmadd_ps(_mm_loadu_ps(a0), _mm_set1_ps(x0[d]), cost[0]);
      cost[1] = _mm_fnmadd_ps(_mm_loadu_ps(a1), _mm_set1_ps(x1[d]), cost[1]);
      cost[2] = _mm_fnmadd_ps(_mm_loadu_ps(a2), _mm_set1_ps(x2[d]), cost[2]);
      cost[3] = _mm_fnmadd_ps(_mm_loadu_ps(a3), _mm_set1_ps(x3[d]), cost[3]);
    }
    for (int i = 0; i < 4; ++i) {
      const __m128 infinity = _mm_set1_ps(__builtin_inff());
      const __mmask8 usable =
          __mmask8(((1u << c[i].vectors) - 1) & _mm_cmp_ps_mask(cost[i], infinity, _CMP_LT_OQ));
      const __m128 costs = _mm_mask_mov_ps(infinity, usable, cost[i]);
      __m128 least = _mm_min_ps(costs, _mm_permute_ps(costs, 0x4e));
      least = _mm_min_ps(least, _mm_permute_ps(least, 0xb1));
      const int lane = __builtin_ctz(_mm_cmp_ps_mask(costs, least, _CMP_EQ_OQ));
      const int64_t key = to_key(least[0], c[i].number + lane);
      found[c[i].row] = key < found[c[i].row] ? key : found[c[i].row];
    }
  }
}

// Lower bounds of all costs of `count` rows, the least of each slot and lane: bounds [row][stride].
void screen_bounds(const Screen& s, int count, const int32_t* pairs, int64_t stride, float* bounds) {
  int64_t panel = 0;
  for (; (panel + 1) * 64 <= s.padded; ++panel)
    screen_sweep<4>(count, pairs, s.words, s.pairs + panel * 64 * (s.words + 1),
                    panel % s.panels_per_slot == 0, bounds + panel / s.panels_per_slot * 16, stride);
  const int32_t* rest = s.pairs + panel * 64 * (s.words + 1);
  const bool first = panel % s.panels_per_slot == 0;
  bounds += panel / s.panels_per_slot * 16;
  switch ((s.padded - panel * 64) / 16) {
    case 1:
      screen_sweep<1>(count, pairs, s.words, rest, first, bounds, stride);
      break;
    case 2:
      screen_sweep<2>(count, pairs, s.words, rest, first, bounds, stride);
      break;
    case 3:
      screen_sweep<3>(count, pairs, s.words, rest, first, bounds, stride);
      break;
    default:
      break;
  }
}

// The slot and lane with the least bound, as 16 slot + lane.
SOLID_INLINE int32_t least_slot(const float* bound, int64_t slots) {
  __m512 least = _mm512_load_ps(bound);
  __m512i where = _mm512_setzero_si512();
  for (int64_t slot = 1; slot < slots; ++slot) {
    const __m512 other = _mm512_load_ps(bound + slot * 16);
    where = _mm512_mask_mov_epi32(where, _mm512_cmp_ps_mask(other, least, _CMP_LT_OQ),
                                  _mm512_set1_epi32(int(slot)));
    least = least_of(other, least);
  }
  const unsigned at = _mm512_cmp_ps_mask(least, _mm512_set1_ps(least_lane(least)), _CMP_EQ_OQ);
  const int lane = at != 0 ? __builtin_ctz(at) : 0;
  alignas(64) int32_t slot_of[16];
  _mm512_store_si512(slot_of, where);
  return slot_of[lane] * 16 + lane;
}

// The nearest code of each row; those given up (too many candidates, or no usable norm) are listed in `left`.
// Returns how many were given up.
int screen_rows(const Screen& s, int count, const float* const* rows, int32_t* codes, int* left) {
  alignas(64) float bounds[kScreenRows * kBoundStride];
  alignas(64) int32_t pairs[kScreenWords];
  Check checks[kScreenChecks + 4];
  bool usable[kScreenRows];
  int64_t found[kScreenRows];
  const int64_t slots = ((s.padded + 63) / 64 + s.panels_per_slot - 1) / s.panels_per_slot;
  const int64_t stride =
      (slots | 1) * 16;  // an odd number of cache lines: rows spread over all sets of the cache
  for (int i = 0; i < count; ++i) usable[i] = screen_row(rows[i], s.dim, pairs + i * s.words);
  screen_bounds(s, count, pairs, stride, bounds);

  // The slot with the least bound gives each row its first exact cost; it is done with then.
  int queued = 0;
  for (int i = 0; i < count; ++i) {
    found[i] = to_key(__builtin_inff(), 0);
    const int32_t start = least_slot(bounds + i * stride, slots);
    bounds[i * stride + start] = __builtin_inff();
    if (queued + s.panels_per_slot > kScreenChecks) run_checks(s, checks, queued, found), queued = 0;
    queued = add_checks(s, rows[i], i, start, checks, queued);
  }
  run_checks(s, checks, queued, found);

  // Every other slot whose bound does not exceed that cost. A check takes about as long as 64 codes of a
  // sweep, and screening saves half a sweep.
  const int budget = int(2 + s.padded / 256 / s.panels_per_slot);
  const __m512i lanes = (__m512i)lane_numbers<float>();
  int given_up = 0;
  queued = 0;
  for (int i = 0; i < count; ++i) {
    const __m512 limit = _mm512_set1_ps(cost_of(found[i]));
    int32_t open[(kScreenSlots + 1) * 16];
    int open_count = 0;
    for (int64_t slot = 0; slot < slots; ++slot) {
      const __mmask16 below =
          _mm512_cmp_ps_mask(_mm512_load_ps(bounds + i * stride + slot * 16), limit, _CMP_LE_OQ);
      const __m512i places = lanes + _mm512_set1_epi32(int(slot) * 16);
      _mm512_storeu_si512(open + open_count, _mm512_maskz_compress_epi32(below, places));
      open_count += __builtin_popcount(below);
    }
    if (!usable[i] || open_count > budget) {
      left[given_up++] = i;
      continue;
    }
    for (int j = 0; j < open_count; ++j) {
      if (queued + s.panels_per_slot > kScreenChecks) run_checks(s, checks, queued, found), queued = 0;
      queued = add_checks(s, rows[i], i, open[j], checks, queued);
    }
  }
  run_checks(s, checks, queued, found);
  for (int i = 0; i < count; ++i) codes[i] = int32_t(found[i]);
  return given_up;
}

}  // namespace
}  // namespace solid::SOLID_ISA
