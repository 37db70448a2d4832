// What the bindings of CUDA kernels share. Without SOLID_CUDA the module has no such bindings.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
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
    throw pybind11::value_error(name + ": expected sizes that one launch can hold: at most " +
                                std::to_string(kMostBlocks) +
                                " blocks, each with at most the device's shared memory");
  throw std::runtime_error(name + ": CUDA says: " + cuda_message());
}

// A binding's arguments one after the other.
class Numbers {
 public:
  explicit Numbers(const pybind11::args& values) : values_(values) {}
  int64_t operator()() const {
    if (at_ == values_.size())
      throw pybind11::index_error("expected more numbers than " + std::to_string(at_));
    return values_[at_++].cast<int64_t>();
  }

 private:
  const pybind11::args& values_;
  mutable size_t at_ = 0;
};

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
