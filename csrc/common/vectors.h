// Vectors of the instruction set being compiled, as wide as its registers, by compiler vector extensions.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace solid::SOLID_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kAccumulators =
    16;  // of 32 registers: covers 4 cycles of latency on two units with room to spare
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kAccumulators = 8;  // of 16 registers
#elif defined(SOLID_NEON)
constexpr int kVectorBytes = 16;
constexpr int kAccumulators = 16;  // of 32 registers: 4 cycles of latency on up to four units
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
using Mask = typename VectorOf<T>::Mask;  // all bits of a lane set, or none; also lane numbers
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
  // A loop over lanes becomes an insertion a lane where gcc meets it in a larger loop. s - 0 is s, also of
  // -0.
  return s - Vector<T>{};
}

template <class T>
SOLID_INLINE Mask<T> lane_numbers() {
  Mask<T> lanes;
  for (int lane = 0; lane < kLanes<T>; ++lane) lanes[lane] = lane;
  return lanes;
}

// Lane i of the result is lane order[i] of a, or of b, whose lanes count on from a's. `order` is a constant.
template <class V, class Order>
SOLID_INLINE V shuffle(V a, V b, Order order) {
#if defined(__clang__)
  constexpr int lanes = int(sizeof(V) / sizeof(a[0]));
  V mixed;
  for (int i = 0; i < lanes; ++i) mixed[i] = order[i] < lanes ? a[order[i]] : b[order[i] - lanes];
  return mixed;
#else
  return __builtin_shuffle(a, b, order);
#endif
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

SOLID_INLINE Vector<double> sigmoid(Vector<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = 1 / (1 + __builtin_exp(-x[lane]));
  return x;
}

// exp(x) = 2^n (1 + p): n as a power of two in `scale`, p = expm1(r) for r = x - n ln 2, |r| <= ln 2 / 2
// (Taylor's series). For |x| <= 88; NaN gives NaN in p.
struct Exponential {
  Vector<float> scale, p;
};

SOLID_INLINE Exponential exponential(Vector<float> x) {
  using V = Vector<float>;
  const V shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: n in the low bits, rounded to nearest
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = 1.9841270e-4f * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  Mask<float> exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent - 0x4B400000 + 127) << 23;
  V scale;
  __builtin_memcpy(&scale, &exponent, sizeof scale);
  return {scale, p};
}

// exp(x) in float to 2 units in the last place for x <= 0, and 0 below -87.7, whose power of two has no bits
// left: 2^n (1 + r + r^2 q(r)) with r = x - n ln 2 and q minimax, which errs by at most 1.1e-7.
SOLID_INLINE Vector<float> exp_below(Vector<float> x) {
  using V = Vector<float>;
  const V least = splat(-88.0f);
  x = x < least ? least : x;
  const V shifted = x * 1.44269504f + 12582912.0f;  // as in `exponential`
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V q = 8.3124591e-3f * r + 4.1890133e-2f;
  q = q * r + 1.6667116e-1f;
  q = q * r + 4.9999231e-1f;
  q = q * (r * r) + r;
  Mask<float> exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent - 0x4B400000 + 127) << 23;
  V scale;
  __builtin_memcpy(&scale, &exponent, sizeof scale);
  return q * scale + scale;
}

SOLID_INLINE Vector<double> exp_below(Vector<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = __builtin_exp(x[lane]);
  return x;
}

// tanh in float to 4 units in the last place: q / (q + 2) with q = exp(2x) - 1, which loses nothing near 0.
// tanh is 1 in float from 9.02 on.
SOLID_INLINE Vector<float> tanh(Vector<float> x) {
  const Exponential e = exponential(2 * clip(x, splat(9.02f)));
  const Vector<float> q = e.p * e.scale + (e.scale - 1);
  return q / (q + 2);
}

// 1 / (1 + exp(-x)) in float to 4 units in the last place for x >= -87; below it stays at its value there,
// 2e-38.
SOLID_INLINE Vector<float> sigmoid(Vector<float> x) {
  const Exponential e = exponential(-clip(x, splat(87.0f)));
  return 1 / (1 + (e.p * e.scale + e.scale));
}

}  // namespace
}  // namespace solid::SOLID_ISA
