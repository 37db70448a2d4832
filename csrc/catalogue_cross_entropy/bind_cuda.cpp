// Python's side of catalogue_cross_entropy's CUDA kernels: device, stream and the numbers of
// catalogue_cross_entropy_cuda.h in.
#include "catalogue_cross_entropy/bind_cuda.h"

#include <cstdint>
#include <string>

#include "catalogue_cross_entropy/catalogue_cross_entropy_cuda.h"
#include "cuda/bind.h"

namespace py = pybind11;

namespace solid {
namespace {

int64_t workspace(int type, int64_t rows, int64_t dim, int64_t items) {
  return catalogue_cross_entropy_cuda_bytes(static_cast<Element>(type), rows, dim, items);
}

void run(int device, uintptr_t stream, const py::args& values) {
  Numbers next(values);
  const CatalogueCrossEntropyCuda call = read_catalogue_cross_entropy_call(next);
  check_cuda(catalogue_cross_entropy_cuda(Stream{device, reinterpret_cast<void*>(stream)}, call), [&] {
    return "catalogue_cross_entropy (B=" + std::to_string(call.rows) + ", D=" + std::to_string(call.dim) +
           ", V=" + std::to_string(call.items) + ")";
  });
}

}  // namespace

void bind_catalogue_cross_entropy_cuda(py::module_& m) {
  m.def("catalogue_cross_entropy_cuda_workspace", &workspace);
  m.def("catalogue_cross_entropy_cuda", &run);
}

}  // namespace solid
