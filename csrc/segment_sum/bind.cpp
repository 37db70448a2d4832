// Python's side of segment_sum: addresses and sizes in, the status out.
#include "segment_sum/bind.h"

#include "common/bind.h"
#include "segment_sum/segment_sum.h"

namespace solid {
namespace {

void sum(bool is_double, Address values, int64_t stride, int64_t rows, int64_t dim, Address index,
         Address mask, int64_t num_codes, Address sums, int threads) {
  check_numbers("segment_sum: expected index", pointer<int64_t>(index), rows, num_codes);
  SegmentSum args;
  args.values = pointer<void>(values), args.stride = stride, args.rows = rows, args.dim = dim;
  args.index = pointer<int64_t>(index), args.mask = pointer<bool>(mask), args.num_codes = num_codes;
  args.sums = pointer<void>(sums), args.threads = threads;
  const auto kernel = is_double ? SOLID_IN_USE(segment_sum_double) : SOLID_IN_USE(segment_sum_float);
  check_status("segment_sum", kernel(args));
}

}  // namespace

void bind_segment_sum(pybind11::module_& m) { m.def("segment_sum", &sum, Release()); }

}  // namespace solid
