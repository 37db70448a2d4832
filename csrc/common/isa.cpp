#include "common/isa.h"

#include <atomic>
#include <cstring>

namespace solid {
namespace {

const char* const kNames[kIsaCount] = {"baseline", "avx2", "avx512", "avx512_bf16"};

bool processor_has(Isa isa) {
  if (isa == Isa::baseline) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx512) return avx512;
  return avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

std::atomic<int>& current() {
  static std::atomic<int> level{static_cast<int>(isa_best())};
  return level;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool isa_built(Isa isa) {
#define SOLID_CASE(level) \
  if (isa == Isa::level) return true;
  SOLID_FOR_EACH_ISA(SOLID_CASE)
#undef SOLID_CASE
  return false;
}

bool isa_usable(Isa isa) { return isa_built(isa) && processor_has(isa); }

Isa isa_best() {
  for (int level = kIsaCount - 1; level > 0; --level) {
    if (isa_usable(static_cast<Isa>(level))) return static_cast<Isa>(level);
  }
  return Isa::baseline;
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
