// Vectors of the instruction set being compiled, as wide as its registers, by compiler vector extensions.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace solid::SOLID_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kAccumulators = 16;  // of 32 registers: covers 4 cycles of latency on two units with room to spare
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kAccumulators = 8;  // of 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kAccumulators = 8;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Word;
};
template <>
struct VectorOf<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Word;
};

template <class T>
using Vector = typename VectorOf<T>::Vector;
template <class T>
using Mask = typename VectorOf<T>::Mask;  // all bits of a lane set, or none
template <class T>
using Word = typename VectorOf<T>::Word;  // an integer of T's size

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

#define SOLID_INLINE inline __attribute__((always_inline))
#define SOLID_APART __attribute__((noinline))  // one copy: keeps code and compile time small

template <class T>
SOLID_INLINE Vector<T> load(const T* from) {
  Vector<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
SOLID_INLINE void store(T* to, Vector<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

template <class T>
SOLID_INLINE Vector<T> splat(T s) {
  Vector<T> v;
  for (int lane = 0; lane < kLanes<T>; ++lane) v[lane] = s;
  return v;
}

// clip to [-bound, bound]; NaN stays NaN (each comparison with it is false).
template <class V>
SOLID_INLINE V clip(V w, V bound) {
  w = w > bound ? bound : w;
  return w < -bound ? -bound : w;
}

SOLID_INLINE Vector<double> tanh(Vector<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = __builtin_tanh(x[lane]);
  return x;
}

// tanh in float to 3 units in the last place: x + x^3 p(x^2) below 0.625 (p: Chebyshev fit of degree 4, relative
// error 2e-8), 1 - 2 / (exp(2|x|) + 1) above, exp by powers of two and a Taylor series.
SOLID_INLINE Vector<float> tanh(Vector<float> x) {
  using V = Vector<float>;
  using I = Mask<float>;
  const V magnitude = x < 0 ? -x : x;
  const V square = x * x;
  V p = -0.006104918662458658f * square + 0.021003615111112595f;
  p = p * square - 0.053852491080760956f;
  p = p * square + 0.13332782685756683f;
  p = p * square - 0.333333283662796f;
  const V small = x + x * square * p;
  // 2|x| = n ln 2 + r, |r| <= ln 2 / 2; tanh is 1 in float from 9.02 on.
  const V doubled = 2 * (magnitude > 9.02f ? splat(9.02f) : magnitude);
  const V shifted = doubled * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: n in the low bits, rounded to nearest
  const V n = shifted - 12582912.0f;
  const V r = (doubled - n * 0.693359375f) + n * 2.12194440e-4f;
  V e = 1.9841270e-4f * r + 1.3888889e-3f;
  e = e * r + 8.3333333e-3f;
  e = e * r + 4.1666667e-2f;
  e = e * r + 1.6666667e-1f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  I exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent - 0x4B400000 + 127) << 23;
  V scale;
  __builtin_memcpy(&scale, &exponent, sizeof scale);
  const V large = 1 - 2 / (e * scale + 1);
  const V curved = magnitude < 0.625f ? small : (x < 0 ? -large : large);
  return x == x ? curved : x;
}

}  // namespace
}  // namespace solid::SOLID_ISA
