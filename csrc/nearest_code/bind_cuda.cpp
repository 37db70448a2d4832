// Python's side of nearest_code_cuda: device, stream, addresses and sizes in.
#include "nearest_code/bind_cuda.h"

#include <cstdint>
#include <string>

#include "common/bind.h"
#include "cuda/bind.h"
#include "nearest_code/nearest_code_cuda.h"

namespace py = pybind11;

namespace solid {
namespace {

int64_t workspace(int method, int type, int64_t rows, int64_t num_codes, int64_t dim) {
  return nearest_code_cuda_workspace(static_cast<Method>(method), static_cast<Element>(type), rows, num_codes,
                                     dim);
}

void search(int device, Address stream, int method, int type, Address x, int64_t x_stride, int64_t rows,
            int64_t dim, Address codebook, int64_t num_codes, Address mask, Address workspace, Address index,
            Address quantized, Address distance, Address counts, Address sums) {
  NearestCodeCuda args;
  args.method = static_cast<Method>(method), args.type = static_cast<Element>(type);
  args.x = pointer<void>(x), args.x_stride = x_stride, args.rows = rows, args.dim = dim;
  args.codebook = pointer<void>(codebook), args.num_codes = num_codes, args.mask = pointer<bool>(mask);
  args.workspace = pointer<void>(workspace), args.index = pointer<int64_t>(index);
  args.quantized = pointer<void>(quantized), args.distance = pointer<void>(distance);
  args.counts = pointer<int64_t>(counts), args.sums = pointer<void>(sums);
  check_cuda(nearest_code_cuda(Stream{device, pointer<void>(stream)}, args), [&] {
    return "nearest_code (N=" + std::to_string(rows) + ", K=" + std::to_string(num_codes) +
           ", D=" + std::to_string(dim) + ")";
  });
}

}  // namespace

void bind_nearest_code_cuda(py::module_& m) {
  m.def("nearest_code_cuda_workspace", &workspace);
  m.def("nearest_code_cuda", &search, Release());
}

}  // namespace solid
