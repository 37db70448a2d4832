// Tiles of a block of sequences, [feature][lanes], and the rows of tensors that they come from and go to.
#pragma once

#include "common/vectors.h"

namespace solid::SOLID_ISA {
namespace {

template <int N>
struct Width {
  static constexpr int value = N;
};

// f(Width<n>, first) over [begin, end): runs of N, then of N / 4, then one by one.
template <int N, class F>
SOLID_INLINE void for_runs(int64_t begin, int64_t end, const F& f) {
  for (; begin + N <= end; begin += N) f(Width<N>{}, begin);
  if constexpr (N > 1) {
    if (begin < end) for_runs<(N > 4 ? N / 4 : 1)>(begin, end, f);
  }
}

SOLID_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
SOLID_INLINE void zero(T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
}

SOLID_INLINE float widened(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

SOLID_INLINE uint16_t narrowed(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  // To nearest, ties to even; a NaN keeps its upper bits and stays one.
  const uint32_t rounded = bits + 0x7FFF + ((bits >> 16) & 1);
  return uint16_t((value == value ? rounded : bits | 0x400000) >> 16);
}

// Rows of a tensor of T, or of bfloat16 if narrow.
template <class T>
struct Rows {
  char* base;
  bool narrow;

  Rows(const void* at, bool is_narrow) : base(static_cast<char*>(const_cast<void*>(at))), narrow(is_narrow) {}
  explicit operator bool() const { return base != nullptr; }
  Rows operator+(int64_t elements) const {
    return {base + elements * (narrow ? 2 : int64_t(sizeof(T))), narrow};
  }
  T read(int64_t at) const {
    return narrow ? T(widened(reinterpret_cast<const uint16_t*>(base)[at]))
                  : reinterpret_cast<const T*>(base)[at];
  }
};

// a[i] lane j <-> a[j] lane i: the halves of pairs `Step` apart change places, for Step = L / 2 .. 1.
template <int Step, class T>
SOLID_INLINE void transpose_steps(Vector<T> (&a)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  if constexpr (Step > 0) {
    Mask<T> low, high;
    for (int lane = 0; lane < L; ++lane) {
      low[lane] = lane & Step ? lane - Step + L : lane;
      high[lane] = lane & Step ? lane + L : lane + Step;
    }
    for (int i = 0; i < L; ++i) {
      if (i & Step) continue;
      const Vector<T> first = a[i], second = a[i + Step];
      a[i] = shuffle(first, second, low);
      a[i + Step] = shuffle(first, second, high);
    }
    transpose_steps<Step / 2, T>(a);
  }
}

template <class T>
SOLID_INLINE void transpose(Vector<T> (&a)[kLanes<T>]) {
  transpose_steps<kLanes<T> / 2, T>(a);
}

// `count` rows, `stride` elements apart, into the first lanes of a tile [columns][lanes]; the other lanes are
// zero.
template <class T>
void pack(const Rows<T>& from, int64_t stride, int64_t count, int64_t columns, int64_t lanes, T* tile) {
  constexpr int L = kLanes<T>;
  if (from.narrow) {
    const auto* rows = reinterpret_cast<const uint16_t*>(from.base);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t c = 0; c < columns; ++c) {
        tile[c * lanes + lane] = lane < count ? T(widened(rows[lane * stride + c])) : T(0);
      }
    }
    return;
  }
  const T* rows = reinterpret_cast<const T*>(from.base);
  for (int64_t lane = 0; lane < lanes; lane += L) {
    int64_t c = 0;
    for (; c + L <= columns && lane + L <= count; c += L) {
      Vector<T> a[L];
      for (int i = 0; i < L; ++i) a[i] = load(rows + (lane + i) * stride + c);
      transpose<T>(a);
      for (int i = 0; i < L; ++i) store(tile + (c + i) * lanes + lane, a[i]);
    }
    for (; c < columns; ++c) {
      for (int64_t i = lane; i < lane + L; ++i) tile[c * lanes + i] = i < count ? rows[i * stride + c] : T(0);
    }
  }
}

// The way back, for the lanes that hold a sequence.
template <class T>
void unpack(const T* tile, int64_t lanes, int64_t count, int64_t columns, const Rows<T>& to, int64_t stride) {
  constexpr int L = kLanes<T>;
  if (to.narrow) {
    auto* rows = reinterpret_cast<uint16_t*>(to.base);
    for (int64_t lane = 0; lane < count; ++lane) {
      for (int64_t c = 0; c < columns; ++c) rows[lane * stride + c] = narrowed(float(tile[c * lanes + lane]));
    }
    return;
  }
  T* rows = reinterpret_cast<T*>(to.base);
  for (int64_t lane = 0; lane < count; lane += L) {
    int64_t c = 0;
    for (; c + L <= columns && lane + L <= count; c += L) {
      Vector<T> a[L];
      for (int i = 0; i < L; ++i) a[i] = load(tile + (c + i) * lanes + lane);
      transpose<T>(a);
      for (int i = 0; i < L; ++i) store(rows + (lane + i) * stride + c, a[i]);
    }
    for (; c < columns; ++c) {
      for (int64_t i = lane; i < least(lane + L, count); ++i) rows[i * stride + c] = tile[c * lanes + i];
    }
  }
}

template <class T>
void tanh_tile(T* tile, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store(tile + i, tanh(load(tile + i)));
}

// g <- g (1 - h^2): back through h = tanh.
template <class T>
void through_tanh(const T* h, int64_t count, T* g) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vector<T> value = load(h + i);
    store(g + i, load(g + i) * (1 - value * value));
  }
}

// The first `count` lanes of memory; the others are zero, and are not stored.
template <class T>
SOLID_INLINE Vector<T> load_some(const T* from, int64_t count) {
  if (count >= kLanes<T>) return load(from);
  Vector<T> v = {};
  for (int64_t lane = 0; lane < count; ++lane) v[lane] = from[lane];
  return v;
}

template <class T>
SOLID_INLINE void store_some(T* to, Vector<T> v, int64_t count) {
  if (count >= kLanes<T>) return store(to, v);
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = v[lane];
}

}  // namespace
}  // namespace solid::SOLID_ISA
