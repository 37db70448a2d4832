// Python's side of dynamic_mlp's CUDA kernels: device, stream and the numbers of dynamic_linear_cuda.h in.
#include "dynamic_linear/bind_cuda.h"

#include <cstdint>
#include <string>

#include "cuda/bind.h"
#include "dynamic_linear/dynamic_linear_cuda.h"

namespace py = pybind11;

namespace solid {
namespace {

int64_t workspace(const py::args& values) {
  const Numbers next(values);
  const DynamicCuda call = read_dynamic_sizes(next);
  return DynamicWorkspace(call).bytes(call);
}

void check(Status status, const DynamicCuda& call) {
  check_cuda(status, [&] {
    std::string sizes;
    for (int l = 0; l <= call.layers; ++l) sizes += (l == 0 ? "" : ", ") + std::to_string(call.sizes[l]);
    return "dynamic_mlp (B=" + std::to_string(call.batch) + ", T=" + std::to_string(call.targets) +
           ", sizes [" + sizes + "], k=" + std::to_string(call.code_dim[kItem]) + " and " +
           std::to_string(call.code_dim[kSemantic]) + ")";
  });
}

Stream stream_of(int device, uintptr_t stream) { return {device, reinterpret_cast<void*>(stream)}; }

void forward(int device, uintptr_t stream, const py::args& values) {
  const DynamicCuda call = read_dynamic_call(Numbers(values), false);
  check(dynamic_forward_cuda(stream_of(device, stream), call), call);
}

void backward(int device, uintptr_t stream, const py::args& values) {
  const DynamicCuda call = read_dynamic_call(Numbers(values), true);
  check(dynamic_backward_cuda(stream_of(device, stream), call), call);
}

}  // namespace

void bind_dynamic_linear_cuda(py::module_& m) {
  m.def("dynamic_cuda_workspace", &workspace);
  m.def("dynamic_forward_cuda", &forward);
  m.def("dynamic_backward_cuda", &backward);
}

}  // namespace solid
