// Where CUDA kernels run, and what becomes of their launch errors. Needs no CUDA header.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

namespace solid {

struct Stream {
  int device = 0;
  void* handle = nullptr;  // cudaStream_t
};

constexpr int64_t kMostBlocks = 0x7fffffff;  // of a grid's first dimension

inline int64_t blocks_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

// kOk, or kLaunchFailed with the error kept for cuda_message (by thread) and cleared in the runtime.
Status cuda_status(int error);

// What the runtime said of this thread's last failed launch.
std::string cuda_message();

std::string cuda_version();                     // of the toolkit, "13.0"
std::vector<std::string> cuda_architectures();  // "80", .. "compute_120": PTX of sm_120

}  // namespace solid
