#include <cuda_runtime.h>

#include "cuda/stream.h"

namespace solid {
namespace {
thread_local cudaError_t last_error = cudaSuccess;
}

Status cuda_status(int error) {
  if (error == cudaSuccess) return Status::kOk;
  last_error = static_cast<cudaError_t>(error);
  cudaGetLastError();
  return Status::kLaunchFailed;
}

std::string cuda_message() {
  std::string message = cudaGetErrorString(last_error);
  if (last_error == cudaErrorNoKernelImageForDevice || last_error == cudaErrorInvalidDeviceFunction)
    message += "; the module was built for " SOLID_CUDA_ARCHITECTURES;
  return message;
}

std::string cuda_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}

std::vector<std::string> cuda_architectures() {
  std::vector<std::string> names;
  std::string name;
  for (const char c : std::string(SOLID_CUDA_ARCHITECTURES " ")) {
    if (c != ' ') {
      name += c;
    } else if (!name.empty()) {
      names.push_back(name);
      name.clear();
    }
  }
  return names;
}

}  // namespace solid
