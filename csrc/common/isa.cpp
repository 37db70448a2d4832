#include "common/isa.h"

#include <atomic>
#include <cstring>

namespace solid {
namespace {

#define SOLID_NAME(level) #level,
const char* const kNames[kIsaCount] = {SOLID_FOR_EACH_ISA(SOLID_NAME)};
#undef SOLID_NAME

std::atomic<int>& current() {
  static std::atomic<int> level{static_cast<int>(isa_best())};
  return level;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool isa_usable(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::baseline) return true;
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx512) return avx512;
  return avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return static_cast<int>(isa) < kIsaCount;  // every 64-bit Arm processor has NEON
#endif
}

Isa isa_best() {
  Isa best = Isa::baseline;
  for (int level = 1; level < kIsaCount; ++level) {
    if (isa_usable(static_cast<Isa>(level))) best = static_cast<Isa>(level);
  }
#if defined(__x86_64__)
  // A search that screens in bfloat16 takes two thirds of the time of one in float32 on Zen 4 and 1.5 times as long on
  // Sapphire Rapids, whose products of float32 are as many a cycle (docs/kernels/nearest_code.md).
  if (best == Isa::avx512_bf16 && !__builtin_cpu_is("amd")) return Isa::avx512;
#endif
  return best;
}

bool isa_parse(const char* name, Isa* isa) {
  for (int level = 0; level < kIsaCount; ++level) {
    if (std::strcmp(name, kNames[level]) == 0) {
      *isa = static_cast<Isa>(level);
      return true;
    }
  }
  return false;
}

Isa isa_in_use() { return static_cast<Isa>(current().load(std::memory_order_relaxed)); }

void set_isa(Isa isa) { current().store(static_cast<int>(isa), std::memory_order_relaxed); }

}  // namespace solid
