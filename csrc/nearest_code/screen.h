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
constexpr float kHugeNorm = 1e18f;      // products of longer rows could overflow: those are searched exactly
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

// False: not worth it. Few codes or components leave too little to save, very many components no room.
bool plan_screen(const float* packed, const int32_t* pairs, int64_t dim, int64_t padded, Screen* screen) {
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
  return dim >= 16 && padded >= 128 && rows >= 6;
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
  to[words] = ((Words<float>)pair)[0];
  return squared <= kHugeNorm * kHugeNorm;
}

template <int R, int P>
__attribute__((noinline)) void screen_tile(const int32_t* rows, int64_t words, const int32_t* panel,
                                           bool first, float* bounds) {
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
    float* to = bounds + r * kScreenSlots * 16;
    _mm512_store_ps(to, first ? least : least_of(least, _mm512_load_ps(to)));
  }
}

template <int P>
void screen_sweep(int count, const int32_t* rows, int64_t words, const int32_t* panel, bool first,
                  float* bounds) {
  for (int at = 0; at < count; at += 6, rows += 6 * words, bounds += 6 * kScreenSlots * 16) {
    switch (count - at) {
      case 1:
        screen_tile<1, P>(rows, words, panel, first, bounds);
        break;
      case 2:
        screen_tile<2, P>(rows, words, panel, first, bounds);
        break;
      case 3:
        screen_tile<3, P>(rows, words, panel, first, bounds);
        break;
      case 4:
        screen_tile<4, P>(rows, words, panel, first, bounds);
        break;
      case 5:
        screen_tile<5, P>(rows, words, panel, first, bounds);
        break;
      default:
        screen_tile<6, P>(rows, words, panel, first, bounds);
        break;
    }
  }
}

struct Found {
  float cost;
  int32_t code;
};

// The exact costs of the codes of one slot, by the chain of `tile`.
SOLID_INLINE Found check_slot(const Screen& s, const float* x, int64_t slot, int lane, Found found) {
  for (int64_t panel = slot * s.panels_per_slot; panel < (slot + 1) * s.panels_per_slot; ++panel) {
    const int64_t first = panel * 64;
    if (first >= s.padded) break;
    const int64_t width = s.padded - first < 64 ? s.padded - first : 64;
    const int vectors = int(width / 16);
    const __mmask8 present = __mmask8((1u << vectors) - 1);
    const float* code = s.packed + first * (s.dim + 1) + vectors * lane;
    __m128 cost = _mm_maskz_loadu_ps(present, code);
    for (int64_t d = 0; d < s.dim; ++d) {
      code += width;
      cost = _mm_fnmadd_ps(_mm_maskz_loadu_ps(present, code), _mm_set1_ps(x[d]), cost);
    }
    for (int p = 0; p < vectors; ++p) {
      const int32_t number = int32_t(first) + vectors * lane + p;
      const bool better = cost[p] < found.cost || (cost[p] == found.cost && number < found.code);
      found.cost = better ? cost[p] : found.cost;
      found.code = better ? number : found.code;
    }
  }
  return found;
}

// The nearest code of each row; those given up (too many candidates, or no finite norm) are listed in `left`.
// Returns how many were given up.
int screen_rows(const Screen& s, int count, const float* const* rows, int32_t* codes, int* left) {
  alignas(64) float bounds[kScreenRows * kScreenSlots * 16];
  alignas(64) int32_t pairs[kScreenWords];
  bool usable[kScreenRows];
  for (int i = 0; i < count; ++i) usable[i] = screen_row(rows[i], s.dim, pairs + i * s.words);
  int64_t panel = 0, slots = 0;
  for (; (panel + 1) * 64 <= s.padded; ++panel)
    screen_sweep<4>(count, pairs, s.words, s.pairs + panel * 64 * (s.words + 1),
                    panel % s.panels_per_slot == 0, bounds + panel / s.panels_per_slot * 16);
  const int32_t* rest = s.pairs + panel * 64 * (s.words + 1);
  const bool first = panel % s.panels_per_slot == 0;
  float* rest_bounds = bounds + panel / s.panels_per_slot * 16;
  switch ((s.padded - panel * 64) / 16) {
    case 1:
      screen_sweep<1>(count, pairs, s.words, rest, first, rest_bounds);
      break;
    case 2:
      screen_sweep<2>(count, pairs, s.words, rest, first, rest_bounds);
      break;
    case 3:
      screen_sweep<3>(count, pairs, s.words, rest, first, rest_bounds);
      break;
    default:
      break;
  }
  slots = ((s.padded + 63) / 64 + s.panels_per_slot - 1) / s.panels_per_slot;

  // The slot with the least bound gives the first exact cost. Rows are independent: their chains overlap.
  int start[kScreenRows];
  Found found[kScreenRows];
  for (int i = 0; i < count; ++i) {
    const float* bound = bounds + i * kScreenSlots * 16;
    __m512 least = _mm512_load_ps(bound);
    __m512i where = _mm512_setzero_si512();
    for (int64_t slot = 1; slot < slots; ++slot) {
      const __m512 other = _mm512_load_ps(bound + slot * 16);
      const __mmask16 less = _mm512_cmp_ps_mask(other, least, _CMP_LT_OQ);
      least = least_of(other, least);
      where = _mm512_mask_mov_epi32(where, less, _mm512_set1_epi32(int(slot)));
    }
    const __mmask16 at = _mm512_cmp_ps_mask(least, _mm512_set1_ps(least_lane(least)), _CMP_EQ_OQ);
    const int lane = at != 0 ? __builtin_ctz(at) : 0;
    alignas(64) int32_t slot_of[16];
    _mm512_store_si512(slot_of, where);
    start[i] = slot_of[lane] * 16 + lane;
  }
  for (int i = 0; i < count; ++i)
    found[i] = check_slot(s, rows[i], start[i] / 16, start[i] % 16, Found{__builtin_inff(), 0});

  // An exact cost takes about as long as 4 x 16 codes of a sweep, and screening saves half a sweep.
  const int64_t budget = 2 + s.padded / 256 / s.panels_per_slot;
  int given_up = 0;
  for (int i = 0; i < count; ++i) {
    const float* bound = bounds + i * kScreenSlots * 16;
    int64_t checked = usable[i] ? 0 : budget + 1;
    for (int64_t slot = 0; slot < slots && checked <= budget; ++slot) {
      unsigned below =
          _mm512_cmp_ps_mask(_mm512_load_ps(bound + slot * 16), _mm512_set1_ps(found[i].cost), _CMP_LE_OQ);
      if (start[i] / 16 == slot) below &= ~(1u << start[i] % 16);
      for (; below != 0 && checked <= budget; below &= below - 1, ++checked)
        found[i] = check_slot(s, rows[i], slot, __builtin_ctz(below), found[i]);
    }
    codes[i] = found[i].code;
    if (checked > budget) left[given_up++] = i;
  }
  return given_up;
}

}  // namespace
}  // namespace solid::SOLID_ISA
