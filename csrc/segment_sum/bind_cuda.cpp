// Python's side of segment_sum_cuda: device, stream, addresses and sizes in.
#include "segment_sum/bind_cuda.h"

#include <cstdint>
#include <string>

#include "common/bind.h"
#include "cuda/bind.h"
#include "segment_sum/segment_sum_cuda.h"

namespace py = pybind11;

namespace solid {
namespace {

void sum(int device, Address stream, int type, Address values, int64_t stride, int64_t rows, int64_t dim,
         int64_t num_codes, Address sums, Address index, Address mask, Address order, Address starts,
         int64_t copies) {
  SegmentSumCuda args;
  args.type = static_cast<Element>(type), args.values = pointer<void>(values), args.stride = stride;
  args.rows = rows, args.dim = dim, args.num_codes = num_codes, args.sums = pointer<void>(sums);
  args.index = pointer<int64_t>(index), args.mask = pointer<bool>(mask);
  args.order = pointer<int64_t>(order), args.starts = pointer<int64_t>(starts);
  args.copies = copies;
  check_cuda(segment_sum_cuda(Stream{device, pointer<void>(stream)}, args), [&] {
    return "segment_sum (N=" + std::to_string(rows) + ", K=" + std::to_string(num_codes) +
           ", D=" + std::to_string(dim) + ")";
  });
}

}  // namespace

void bind_segment_sum_cuda(py::module_& m) { m.def("segment_sum_cuda", &sum, Release()); }

}  // namespace solid
