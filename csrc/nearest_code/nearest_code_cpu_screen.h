// Screening at half precision: finds the few codes that can be the nearest one, for an exact re-check.
//
// With x~, c~ rounded to bfloat16, e = ||x - x~|| and E = ||c - c~||, Cauchy and Schwarz give
//   |<x, c> - <x~, c~>| = |<x - x~, c~> + <x, c - c~>| <= e ||c~|| + ||x|| E,
// so that  L = h - <x~, c~> - e ||c~|| - ||x|| E,  h = ||c||^2 / 2,  is a lower bound of the cost h - <x, c>.
// The two last terms are one more pair of components of a product of bfloat16 pairs (each factor rounded up),
// and L costs D / 2 + 1 instructions for 16 codes instead of D. Rounding of float32 sums, in L and in the
// exact cost, is at most eta (h + ||x|| ||c||) with eta = (D + 6) 2^-23: h is made smaller and E larger by 4
// eta ||.||. The code with the least L gives a first cost; whatever lies below it, or above it by less than
// rounding reaches (`rounding_reach`), is computed exactly, by the same chain of operations as in `tile`. So
// the winner is that of the float32 search, and all that its certainty depends on has been looked at.
//
// Lanes are rows: 16 rows of a vector meet one code of a group of 8, so that no step of the selection goes
// across lanes. Only the least L of a "slot" of 16 codes is kept (or of several times 16), which are one
// vector of the float32 panel and checked together.
#pragma once

#include <immintrin.h>

namespace solid::SOLID_ISA {
namespace {

constexpr int kGroup = 8;       // codes of a tile: 8 x 3 accumulators, 3 rows and 1 broadcast of 32 registers
constexpr int kRowVectors = 3;  // vectors of rows screened together
constexpr int kScreenSlots = 256;        // per row; their bounds take at most 48 KB
constexpr int kScreenWords = 16 * 1152;  // pairs of components of all rows: fewer vectors if D > 766
constexpr int64_t kFewestRows = 96;      // packing the pairs takes as long as is saved on about 60 rows
constexpr int kFewestLanes = 8;          // of 16 in use, or the float32 search is faster
constexpr int kUnscreened = 15;          // blocks: a chunk screened in vain costs a quarter of a block
// Exact costs a row, and an eighth of all: they take four times as long as in a sweep, half of which is
// saved.
constexpr int64_t kMostCodes = 32;
constexpr float kHugeNorm = 1e18f;  // products of longer rows could overflow: those are searched exactly
constexpr float kLargestBound = 1e38f;
constexpr float kFloor = 0x1p-50f;  // above what underflow can hide in the norms

struct Screen {
  const float* packed;   // [vector][D + 1][16], as in nearest_code_cpu.cpp
  const int32_t* pairs;  // [group][words + 1][8]: row 0 is h, then -(c~ pairs), last -(||c~||, E)
  int64_t dim, words, padded, slots, slot_codes;
  int vectors;  // of rows, screened together
};

constexpr int64_t screen_words(int64_t dim) { return (dim + 1) / 2 + 1; }

// False: not worth it. Few rows do not pay for packing the pairs, few codes or components leave too little to
// save, very many components no room.
bool plan_screen(const float* packed, const int32_t* pairs, int64_t count, int64_t dim, int64_t padded,
                 Screen* screen) {
  const int64_t words = screen_words(dim);
  const int64_t slot_codes = (padded + 16 * kScreenSlots - 1) / (16 * kScreenSlots) * 16;
  const int64_t slots = (padded + slot_codes - 1) / slot_codes;
  const int64_t vectors = least(kScreenWords / (16 * words), kRowVectors);
  *screen = Screen{packed, pairs, dim, words, padded, slots, slot_codes, int(vectors)};
  return count >= kFewestRows && dim >= 16 && padded >= 128 && vectors >= 1;
}

// The masked forms of some intrinsics: the plain ones pass GCC 12 an undefined operand, which it warns of.
constexpr __mmask16 kAll = 0xffff;

SOLID_INLINE __m512 least_of(__m512 a, __m512 b) { return _mm512_maskz_min_ps(kAll, a, b); }
SOLID_INLINE __m512 root_of(__m512 a) { return _mm512_maskz_sqrt_ps(kAll, a); }
SOLID_INLINE __m512i widen(__m256i halves) { return _mm512_maskz_cvtepu16_epi32(kAll, halves); }
SOLID_INLINE __m512i to_high(__m512i words) { return _mm512_maskz_slli_epi32(kAll, words, 16); }

template <int Half>
SOLID_INLINE __m256i half_of(__m512i v) {
  return _mm512_maskz_extracti64x4_epi64(0xf, v, Half);
}

SOLID_INLINE float least_lane(__m512 v) {
  v = least_of(v, _mm512_maskz_shuffle_f32x4(kAll, v, v, 0x4e));
  v = least_of(v, _mm512_maskz_shuffle_f32x4(kAll, v, v, 0xb1));
  v = least_of(v, _mm512_maskz_permute_ps(kAll, v, 0x4e));
  v = least_of(v, _mm512_maskz_permute_ps(kAll, v, 0xb1));
  return v[0];
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

// The two groups of pairs of a vector of float32 codes. Codes without a finite norm are never chosen: bound
// +infinity.
void screen_codes(const float* codes, int64_t dim, int32_t* to) {
  const float eta = float(dim + 6) * 0x1p-23f;
  const int64_t words = screen_words(dim);
  const int64_t group = (words + 1) * kGroup;
  const auto put = [=](int64_t row, __m512i values) {
    _mm256_storeu_si256((__m256i*)(to + row * kGroup), half_of<0>(values));
    _mm256_storeu_si256((__m256i*)(to + group + row * kGroup), half_of<1>(values));
  };
  const __m512 half = _mm512_loadu_ps(codes);
  const __mmask16 usable = _mm512_cmp_ps_mask(half, _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  __m512 norm = _mm512_setzero_ps(), lost = _mm512_setzero_ps();
  for (int64_t j = 1; j < words; ++j) {
    const int64_t d = 2 * j - 1;  // row of the codes
    const __m512 low = _mm512_maskz_loadu_ps(usable, codes + d * 16);
    const __m512 high = d < dim ? _mm512_maskz_loadu_ps(usable, codes + d * 16 + 16) : _mm512_setzero_ps();
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

// Lane i of the result is the sum of the lanes of v[i]: neighbours are added in four rounds.
SOLID_INLINE Vector<float> sums_of(Vector<float> (&v)[16]) {
  const Mask<float> even = lane_numbers<float>() * 2;
#pragma GCC unroll 4
  for (int count = 8; count > 0; count /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i)
      v[i] = shuffle(v[2 * i], v[2 * i + 1], even) + shuffle(v[2 * i], v[2 * i + 1], even + 1);
  return v[0];
}

// Up to 16 rows as a vector of lanes: x~ in pairs, then (e, ||x||), [words][stride]; and ||x||, 1 % too
// large. Returns the rows that can be screened: not too long, and numbers.
SOLID_APART __mmask16 screen_rows(const Screen& s, const float* const* rows, int count, int32_t* to,
                                  int64_t stride, float* lengths) {
  Vector<float> norm[16] = {}, lost[16] = {};
  for (int64_t d = 0; d < s.dim; d += 32) {
    const uint32_t present = s.dim - d >= 32 ? ~uint32_t(0) : (uint32_t(1) << (s.dim - d)) - 1;
    Vector<float> pairs[16] = {};
    for (int i = 0; i < count; ++i) {
      const __m512 low = _mm512_maskz_loadu_ps(__mmask16(present), rows[i] + d);
      const __m512 high = _mm512_maskz_loadu_ps(__mmask16(present >> 16), rows[i] + d + 16);
      const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      const __m512 lost_low = low - _mm512_castsi512_ps(to_high(widen(half_of<0>(halves))));
      const __m512 lost_high = high - _mm512_castsi512_ps(to_high(widen(half_of<1>(halves))));
      norm[i] += low * low + high * high;
      lost[i] += lost_low * lost_low + lost_high * lost_high;
      pairs[i] = _mm512_castsi512_ps(halves);
    }
    transpose<float>(pairs);
    const int64_t words = least(s.words - 1 - d / 2, 16);
    for (int64_t j = 0; j < words; ++j) store((float*)to + (d / 2 + j) * stride, pairs[j]);
  }
  const __m512 squared = sums_of(norm);
  const __m512 length = root_of(squared) * 1.01f + kFloor;
  const __m512 error = root_of(sums_of(lost)) * 1.01f + kFloor;
  _mm512_storeu_si512(to + (s.words - 1) * stride, to_words(error, length));
  _mm512_storeu_ps(lengths, length);
  const __m512 longest = _mm512_set1_ps(kHugeNorm * kHugeNorm);
  return _mm512_mask_cmp_ps_mask(__mmask16((1u << count) - 1), squared, longest, _CMP_LE_OQ);
}

// The least lower bound of each slot and row: bounds [slot][P vectors of rows].
template <int P>
__attribute__((noinline)) void screen_sweep(const Screen& s, const int32_t* rows, float* bounds) {
  const int32_t* codes = s.pairs;
  for (int64_t slot = 0; slot < s.slots; ++slot, bounds += P * 16) {
    const int64_t first = slot * s.slot_codes;
    for (int64_t code = first; code < least(first + s.slot_codes, s.padded); code += kGroup) {
      __m512 bound[kGroup][P];
#pragma GCC unroll 8
      for (int c = 0; c < kGroup; ++c)
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) bound[c][p] = _mm512_castsi512_ps(_mm512_set1_epi32(codes[c]));
      codes += kGroup;
      for (int64_t j = 0; j < s.words; ++j, codes += kGroup) {
        __m512i row[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) row[p] = _mm512_loadu_si512(rows + (j * P + p) * 16);
#pragma GCC unroll 8
        for (int c = 0; c < kGroup; ++c) {
          const __m512i pair = _mm512_set1_epi32(codes[c]);
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p)
            bound[c][p] = _mm512_dpbf16_ps(bound[c][p], (__m512bh)pair, (__m512bh)row[p]);
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        __m512 low = bound[0][p];
#pragma GCC unroll 8
        for (int c = 1; c < kGroup; ++c) low = least_of(low, bound[c][p]);
        float* to = bounds + p * 16;
        _mm512_storeu_ps(to, code == first ? low : least_of(low, _mm512_loadu_ps(to)));
      }
    }
  }
}

// The least exact cost of each of up to 16 checks, its code, the lowest on a tie, and the least of the
// others.
using Nearest = Best<float>;

// Exact costs of the slots of `places`, 16 slot + lane of the row, by the chain of `tile`, four in step to
// hide its latency. The list is filled up to a multiple of four.
SOLID_APART Nearest run_checks(const Screen& s, const float* const* rows, int32_t* places, int count) {
  for (int filled = count; filled % 4 != 0; ++filled) places[filled] = places[0];
  const Vector<float> infinite = Vector<float>{} + __builtin_inff();
  Nearest best{infinite, Mask<float>{}, infinite};
  for (int64_t vector = 0; vector < s.slot_codes; vector += 16) {
    Vector<float> costs[16];
    Mask<float> first;
    alignas(64) int32_t firsts[16] = {};
    for (int at = 0; at < count; at += 4) {
      const float *x[4], *codes[4];
      Vector<float> cost[4];
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const int64_t code = least(places[at + c] / 16 * s.slot_codes + vector, s.padded - 16);
        firsts[at + c] = int32_t(code);
        codes[c] = s.packed + code * (s.dim + 1);
        x[c] = rows[places[at + c] % 16];
        cost[c] = load(codes[c]);
      }
      for (int64_t d = 0; d < s.dim; ++d) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) cost[c] -= load(codes[c] + (d + 1) * 16) * x[c][d];
      }
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) costs[at + c] = cost[c];
    }
    __builtin_memcpy(&first, firsts, sizeof first);
    transpose<float>(costs);
#pragma GCC unroll 16
    for (int code = 0; code < 16; ++code) {
      const Mask<float> less = costs[code] < best.cost;
      const Vector<float> other = less ? best.cost : costs[code];
      best.second = other < best.second ? other : best.second;
      best.cost = less ? costs[code] : best.cost;
      best.code = less ? first + code : best.code;
    }
  }
  return best;
}

// The slot with the least bound of each of 16 rows, as 16 slot + lane.
SOLID_INLINE __m512i least_slots(const Screen& s, const float* bounds, int64_t stride) {
  __m512i places = (__m512i)lane_numbers<float>();
  const __m512i lanes = places;
  __m512 low = _mm512_loadu_ps(bounds);
  for (int64_t slot = 1; slot < s.slots; ++slot) {
    const __m512 other = _mm512_loadu_ps(bounds + slot * stride);
    const __mmask16 lower = _mm512_cmp_ps_mask(other, low, _CMP_LT_OQ);
    places = _mm512_mask_add_epi32(places, lower, lanes, _mm512_set1_epi32(int(slot) * 16));
    low = least_of(other, low);
  }
  return places;
}

// Lists the slots of `usable` rows whose bound does not exceed the row's limit; returns how many.
SOLID_INLINE int open_slots(const Screen& s, const float* bounds, int64_t stride, __mmask16 usable,
                            __m512 limit, int32_t* places) {
  const __m512i lanes = (__m512i)lane_numbers<float>();
  int count = 0;
  for (int64_t slot = 0; slot < s.slots; ++slot) {
    const __mmask16 open =
        _mm512_mask_cmp_ps_mask(usable, _mm512_loadu_ps(bounds + slot * stride), limit, _CMP_LE_OQ);
    const __m512i numbers = lanes + _mm512_set1_epi32(int(slot) * 16);
    _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(open, numbers));
    count += __builtin_popcount(open);
  }
  return count;
}

// The nearest codes of up to 16 rows from their bounds, one slot every `stride` floats. False: too many
// candidates.
SOLID_APART bool select_codes(const Screen& s, const float* const* rows, __mmask16 usable, float* bounds,
                              int64_t stride, const float* lengths, Winner<float>* winners) {
  int32_t places[kScreenSlots * 16 + 16];

  // The slot with the least bound gives each row its first exact cost; it is done with then.
  _mm512_storeu_si512(places, least_slots(s, bounds, stride));
  for (int i = 0; i < 16; ++i) {
    if (usable >> i & 1)
      bounds[places[i] / 16 * stride + i] = __builtin_inff();
    else
      places[i] = places[__builtin_ctz(usable)];
  }
  Nearest found = run_checks(s, rows, places, 16);
  // ||x||^2 + 2 cost is the squared distance but for rounding, which the 1 % on ||x|| covers.
  const __m512 length = _mm512_loadu_ps(lengths), cost = (__m512)found.cost;
  const __m512 distance =
      _mm512_maskz_max_ps(kAll, (length * length + 2 * cost) * 1.01f, _mm512_setzero_ps());
  const __m512 r = length + root_of(distance);
  const __m512 limit = cost + (rounding_reach<float>(s.dim) * (r * r) + kReachFloor<float>);
  const int count = open_slots(s, bounds, stride, usable, limit, places);
  if (count * s.slot_codes > 16 * (kMostCodes + s.padded / 8)) return false;
  for (int at = 0; at < count; at += 16) {
    const int size = int(least(count - at, 16));
    const Nearest other = run_checks(s, rows, places + at, size);
    for (int i = 0; i < size; ++i) {
      const int row = places[at + i] % 16;
      const bool tie = other.cost[i] == found.cost[row] && other.code[i] < found.code[row];
      float loser = other.cost[i];
      if (other.cost[i] < found.cost[row] || tie) {
        loser = found.cost[row];
        found.cost[row] = other.cost[i];
        found.code[row] = other.code[i];
      }
      if (other.second[i] < loser) loser = other.second[i];
      if (loser < found.second[row]) found.second[row] = loser;
    }
  }
  for (int i = 0; i < 16; ++i) {
    const float unseen = limit[i];  // what was not looked at costs more
    winners[i] = {found.code[i], found.cost[i], found.second[i] < unseen ? found.second[i] : unseen};
  }
  return true;
}

// The nearest codes of up to 16 `vectors` rows; those given up are listed in `left`. Returns how many were.
int screen_chunk(const Screen& s, int count, const float* const* rows, Winner<float>* winners, int* left) {
  alignas(64) float bounds[kScreenSlots * kRowVectors * 16];
  alignas(64) int32_t pairs[kScreenWords];
  const int vectors = (count + 15) / 16;
  const int64_t stride = vectors * 16;
  alignas(64) float lengths[kRowVectors * 16];
  __mmask16 usable[kRowVectors];
  for (int v = 0; v < vectors; ++v)
    usable[v] = screen_rows(s, rows + v * 16, int(least(count - v * 16, 16)), pairs + v * 16, stride,
                            lengths + v * 16);
  switch (vectors) {
    case 1:
      screen_sweep<1>(s, pairs, bounds);
      break;
    case 2:
      screen_sweep<2>(s, pairs, bounds);
      break;
    default:
      screen_sweep<3>(s, pairs, bounds);
      break;
  }
  int given_up = 0;
  for (int v = 0; v < vectors; ++v) {
    Winner<float> found[16];
    if (usable[v] != 0 &&
        !select_codes(s, rows + v * 16, usable[v], bounds + v * 16, stride, lengths + v * 16, found))
      usable[v] = 0;
    for (int i = v * 16; i < least(count, v * 16 + 16); ++i) {
      if (usable[v] >> i % 16 & 1)
        winners[i] = found[i % 16];
      else
        left[given_up++] = i;
    }
  }
  return given_up;
}

}  // namespace
}  // namespace solid::SOLID_ISA
