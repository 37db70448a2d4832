// What the bindings of CUDA kernels share. Without SOLID_CUDA the module has no such bindings.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cuda/stream.h"

namespace solid {

#if defined(SOLID_CUDA)

// Throws what Python shall raise; `what` names the operation and its sizes, and is called on failure alone.
template <class What>
void check_cuda(Status status, const What& what) {
  if (status == Status::kOk) return;
  const std::string name = what();
  if (status == Status::kBadArgument)
    throw pybind11::value_error(name + ": expected arguments that a kernel can use");
  if (status == Status::kTooLarge)
    throw pybind11::value_error(name + ": expected sizes that one launch can hold, got more than " +
                                std::to_string(kMostBlocks) + " blocks");
  throw std::runtime_error(name + ": CUDA says: " + cuda_message());
}

inline pybind11::object cuda_info() {
  pybind11::dict info;
  info["version"] = cuda_version();
  pybind11::list architectures;
  for (const std::string& name : cuda_architectures()) architectures.append(name);
  info["architectures"] = architectures;
  return info;
}

#else

inline pybind11::object cuda_info() { return pybind11::none(); }

#endif

}  // namespace solid
