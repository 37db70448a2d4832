// Python's side of gru_last_state's CUDA kernels: device, stream and the numbers of gru_cuda.h in.
#include "gru/bind_cuda.h"

#include <cstdint>
#include <string>

#include "cuda/bind.h"
#include "gru/gru_cuda.h"

namespace py = pybind11;

namespace solid {
namespace {

int64_t workspace(int type, int64_t batch, int64_t inputs, int64_t hidden) {
  return gru_cuda_bytes(static_cast<Element>(type), batch, inputs, hidden);
}

template <class Entry>
void run(int device, uintptr_t stream, const py::args& values, bool backward, const Entry& entry) {
  Numbers next(values);
  const GruCuda gru = read_gru_call(next, backward);
  check_cuda(entry(Stream{device, reinterpret_cast<void*>(stream)}, gru), [&] {
    return "gru_last_state (B=" + std::to_string(gru.batch) + ", L=" + std::to_string(gru.length) +
           ", D=" + std::to_string(gru.inputs) + ", H=" + std::to_string(gru.hidden) + ")";
  });
}

void forward(int device, uintptr_t stream, const py::args& values) {
  run(device, stream, values, false, gru_forward_cuda);
}

void backward(int device, uintptr_t stream, const py::args& values) {
  run(device, stream, values, true, gru_backward_cuda);
}

}  // namespace

void bind_gru_cuda(py::module_& m) {
  m.def("gru_cuda_workspace", &workspace);
  m.def("gru_forward_cuda", &forward);
  m.def("gru_backward_cuda", &backward);
}

}  // namespace solid
