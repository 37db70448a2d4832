// Instruction sets: which levels this module holds, what this processor has, what is in use.
//
// A kernel source is compiled once per level with SOLID_ISA set to the level's name, and puts its entry
// points into `namespace solid::SOLID_ISA`. Such a source includes no header with inline functions that the
// baseline also instantiates: the linker could keep the copy with the wider instructions.
//
// The baseline rounds every product and every sum apart, in 16-byte vectors, on x86-64 and Arm alike: its
// float32 results are the same bits on both. The other levels fuse them.
#pragma once

#if defined(__x86_64__)
#  define SOLID_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx512) X(avx512_bf16)
#  define SOLID_LEVELS_OF(function)                                                      \
    {&::solid::baseline::function, &::solid::avx2::function, &::solid::avx512::function, \
     &::solid::avx512_bf16::function}
#elif defined(__aarch64__)
#  define SOLID_FOR_EACH_ISA(X) X(baseline) X(neon)
#  define SOLID_LEVELS_OF(function) {&::solid::baseline::function, &::solid::neon::function}
#else
#  define SOLID_FOR_EACH_ISA(X) X(baseline)
#  define SOLID_LEVELS_OF(function) {&::solid::baseline::function}
#endif

namespace solid {

// In rising order; all of them are compiled into the module.
#define SOLID_NAME(level) level,
enum class Isa : int { SOLID_FOR_EACH_ISA(SOLID_NAME) };
#undef SOLID_NAME

#define SOLID_ONE(level) +1
inline constexpr int kIsaCount = SOLID_FOR_EACH_ISA(SOLID_ONE);
#undef SOLID_ONE

const char* isa_name(Isa isa);
bool isa_usable(Isa isa);  // this processor runs it
Isa isa_best();            // the fastest usable level: the highest but for bfloat16 where that is slow
bool isa_parse(const char* name, Isa* isa);

// The level that the kernels run at: the best one, until set_isa changes it.
Isa isa_in_use();
void set_isa(Isa isa);

}  // namespace solid

// The function of that name of the level in use.
#define SOLID_IN_USE(function)                                                                    \
  [] {                                                                                            \
    static constexpr decltype(&::solid::baseline::function) levels[] = SOLID_LEVELS_OF(function); \
    return levels[static_cast<int>(::solid::isa_in_use())];                                       \
  }()
