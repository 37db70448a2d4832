// Python's side of nearest_code: addresses and sizes in, the status out.
#include "nearest_code/bind.h"

#include "common/bind.h"
#include "nearest_code/nearest_code.h"

namespace solid {
namespace {

// Elements that the caller must allocate for the workspace: 0 if the stack has room.
int64_t workspace_elements(int64_t num_codes, int64_t dim, int64_t element_size) {
  const int64_t elements = nearest_code_workspace(num_codes, dim, element_size);
  return elements * element_size <= kStackWorkspace ? 0 : elements;
}

void search(bool is_double, Address x, int64_t x_stride, int64_t rows, int64_t dim, Address codebook,
            int64_t num_codes, Address mask, Address workspace, Address index, Address quantized,
            Address distance, Address counts, Address sums, int threads) {
  alignas(64) char small[kStackWorkspace];
  if (workspace == 0 && workspace_elements(num_codes, dim, is_double ? 8 : 4) > 0)
    throw pybind11::value_error("nearest_code: expected a workspace, got none");
  NearestCode args;
  args.x = pointer<void>(x), args.x_stride = x_stride, args.rows = rows, args.dim = dim;
  args.codebook = pointer<void>(codebook), args.num_codes = num_codes, args.mask = pointer<bool>(mask);
  args.workspace = workspace == 0 ? small : pointer<void>(workspace), args.index = pointer<int64_t>(index);
  args.quantized = pointer<void>(quantized), args.distance = pointer<void>(distance);
  args.counts = pointer<int64_t>(counts), args.sums = pointer<void>(sums), args.threads = threads;
  const auto kernel = is_double ? SOLID_IN_USE(nearest_code_double) : SOLID_IN_USE(nearest_code_float);
  check_status("nearest_code", kernel(args));
}

}  // namespace

void bind_nearest_code(pybind11::module_& m) {
  m.def("nearest_code", &search, Release());
  m.def("nearest_code_workspace", &workspace_elements);
}

}  // namespace solid
