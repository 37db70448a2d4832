// Numbers of kernel bodies, the same on the device and on the host: narrow floats, packs, fused arithmetic.
//
// Kernels are compiled without contraction (-fmad=false, -ffp-contract=off): a product and a sum become one
// rounding only where `fused` says so. The host policy therefore computes what the device computes.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#  define SOLID_DEVICE __device__ __forceinline__
#  define SOLID_BOTH __host__ __device__ constexpr
#else
#  define SOLID_DEVICE inline
#  define SOLID_BOTH constexpr
#endif

namespace solid {

template <class To, class From>
SOLID_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: expected types of one size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

SOLID_DEVICE float fused(float a, float b, float c) { return fmaf(a, b, c); }  // a b + c, rounded once
SOLID_DEVICE double fused(double a, double b, double c) { return fma(a, b, c); }

template <class T>
SOLID_DEVICE T infinity() {
  return T(__builtin_huge_val());
}

// Numbers that are read and written at once; `from` and `to` below must be aligned to all of them.
template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T at[n];
};

template <int n, class T>
SOLID_DEVICE Pack<T, n> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}

template <int n, class T>
SOLID_DEVICE void store_pack(T* to, Pack<T, n> values) {
  *reinterpret_cast<Pack<T, n>*>(to) = values;
}

// bfloat16 and float16 are kept as their bits.
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

SOLID_DEVICE float to_float(float value) { return value; }
SOLID_DEVICE float to_float(Bf16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }
SOLID_DEVICE float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#elif defined(__CUDACC__)
  return 0;  // nvcc's host pass: never run
#else
  return float(bit_cast<_Float16>(value.bits));
#endif
}

// To the nearest, ties to even.
SOLID_DEVICE Bf16 to_bf16(float value) {
#if defined(__CUDA_ARCH__)
  Bf16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  const uint32_t bits = bit_cast<uint32_t>(value);
  if (value != value) return Bf16{0x7fff};
  return Bf16{uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}

SOLID_DEVICE Half to_half(float value) {
#if defined(__CUDA_ARCH__)
  Half narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#elif defined(__CUDACC__)
  return Half{0};  // nvcc's host pass: never run
#else
  return Half{bit_cast<uint16_t>(_Float16(value))};
#endif
}

// To ten bits of mantissa, ties away from zero: what a matrix unit takes as TF32.
SOLID_DEVICE uint32_t to_tf32(float value) {
#if defined(__CUDA_ARCH__)
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  const uint32_t bits = bit_cast<uint32_t>(value);
  const bool finite = (bits & 0x7f800000) != 0x7f800000;
  return finite ? (bits + 0x1000) & 0xffffe000 : bits;
#endif
}

// Two neighbours in one word, the first in the lower half, as matrix fragments take them.
SOLID_DEVICE uint32_t pair_of(Bf16 first, Bf16 second) {
  return uint32_t(first.bits) | uint32_t(second.bits) << 16;
}
SOLID_DEVICE uint32_t pair_of(Half first, Half second) {
  return uint32_t(first.bits) | uint32_t(second.bits) << 16;
}

// What sums are kept in.
SOLID_DEVICE double widen(double value) { return value; }
SOLID_DEVICE float widen(float value) { return value; }
SOLID_DEVICE float widen(Bf16 value) { return to_float(value); }
SOLID_DEVICE float widen(Half value) { return to_float(value); }

// What is kept of them.
SOLID_DEVICE void narrow(double value, double& to) { to = value; }
SOLID_DEVICE void narrow(float value, float& to) { to = value; }
SOLID_DEVICE void narrow(float value, Bf16& to) { to = to_bf16(value); }
SOLID_DEVICE void narrow(float value, Half& to) { to = to_half(value); }

template <int n, class T>
SOLID_DEVICE bool aligned_to_packs(const T* base) {
  return reinterpret_cast<uintptr_t>(base) % sizeof(Pack<T, n>) == 0;
}

// An array whose element type is known at run time: one compiled kernel serves all of them. T is what they
// are widened to, double for kDouble and float for the others.
enum class Element : int { kFloat = 0, kBf16 = 1, kHalf = 2, kDouble = 3 };

// use(base) with base as a pointer to the elements' type.
template <class T, class Use>
SOLID_DEVICE void visit(const void* base, Element type, const Use& use) {
  if constexpr (sizeof(T) == 8) {
    use(static_cast<const double*>(base));
  } else {
    switch (type) {
      case Element::kBf16:
        return use(static_cast<const Bf16*>(base));
      case Element::kHalf:
        return use(static_cast<const Half*>(base));
      default:
        return use(static_cast<const float*>(base));
    }
  }
}

template <class T>
SOLID_DEVICE T load_element(const void* base, Element type, int64_t i) {
  T value;
  visit<T>(base, type, [&](const auto* typed) { value = widen(typed[i]); });
  return value;
}

template <class T>
SOLID_DEVICE void store_element(void* base, Element type, int64_t i, T value) {
  if constexpr (sizeof(T) == 8) {
    static_cast<double*>(base)[i] = value;
  } else {
    switch (type) {
      case Element::kBf16:
        static_cast<Bf16*>(base)[i] = to_bf16(value);
        break;
      case Element::kHalf:
        static_cast<Half*>(base)[i] = to_half(value);
        break;
      default:
        static_cast<float*>(base)[i] = value;
    }
  }
}

}  // namespace solid
