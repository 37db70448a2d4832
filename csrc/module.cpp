// The compiled module `_solid_ext`: one thin function per operation and device.
//
// Tensors arrive as addresses and sizes that Python has checked; nothing here knows torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/isa.h"
#include "common/status.h"
#include "cuda/bind.h"
#include "dynamic_linear/bind.h"
#include "dynamic_linear/bind_cuda.h"
#include "gru/bind.h"
#include "gru/bind_cuda.h"
#include "nearest_code/bind_cuda.h"
#include "nearest_code/nearest_code.h"
#include "symbols/symbols.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  std::vector<std::string> built, usable;
  for (int level = 0; level < solid::kIsaCount; ++level) {
    const auto isa = static_cast<solid::Isa>(level);
    built.emplace_back(solid::isa_name(isa));
    if (solid::isa_usable(isa)) usable.emplace_back(solid::isa_name(isa));
  }
  py::dict info;
  info["version"] = SOLID_VERSION;
  info["compiler"] = SOLID_COMPILER;
  info["isa_built"] = built;
  info["isa_usable"] = usable;
  info["isa"] = solid::isa_name(solid::isa_in_use());
  info["cuda"] = solid::cuda_info();
  info["cuda_build"] = SOLID_CUDA_SENTENCE;
  return info;
}

void set_isa(const std::string& name) {
  solid::Isa isa;
  if (!solid::isa_parse(name.c_str(), &isa) || !solid::isa_usable(isa)) {
    std::string usable;
    for (int level = 0; level < solid::kIsaCount; ++level) {
      const auto candidate = static_cast<solid::Isa>(level);
      if (solid::isa_usable(candidate))
        usable += (usable.empty() ? "" : ", ") + std::string(solid::isa_name(candidate));
    }
    throw py::value_error("SOLID_EXT_ISA: expected one of " + usable + " on this processor, got '" + name +
                          "'");
  }
  solid::set_isa(isa);
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check(solid::Status status) {
  if (status != solid::Status::kOk) throw py::value_error("expected arguments that a kernel can use");
}

// Numbers that a kernel takes as addresses: refused outside 0 .. rows - 1, a pass that is lost in the
// kernel's time.
void check_numbers(const char* name, const int64_t* numbers, int64_t count, int64_t rows) {
  const auto outside = [=](int64_t number) { return uint64_t(number) >= uint64_t(rows); };
  bool any = false;
  for (int64_t i = 0; i < count; ++i) any |= outside(numbers[i]);
  for (int64_t i = 0; any && i < count; ++i)
    if (outside(numbers[i]))
      throw py::value_error(std::string(name) + " in 0 .. " + std::to_string(rows - 1) + ", got " +
                            std::to_string(numbers[i]));
}

constexpr int64_t kStackWorkspace =
    65536;  // bytes: up to this size an allocation would cost more than it holds

// Elements that the caller must allocate for the workspace: 0 if the stack has room.
int64_t nearest_code_workspace(int64_t codes, int64_t dim, int64_t element_size) {
  const int64_t elements = solid::nearest_code_workspace(codes, dim, element_size);
  return elements * element_size <= kStackWorkspace ? 0 : elements;
}

void nearest_code(bool is_double, uintptr_t x, int64_t x_stride, int64_t rows, int64_t dim,
                  uintptr_t codebook, int64_t codes, uintptr_t mask, uintptr_t workspace, uintptr_t index,
                  uintptr_t quantized, uintptr_t distance, uintptr_t counts, uintptr_t sums, int threads) {
  alignas(64) char small[kStackWorkspace];
  if (workspace == 0 && nearest_code_workspace(codes, dim, is_double ? 8 : 4) > 0)
    throw py::value_error("nearest_code: expected a workspace, got none");
  solid::NearestCode args;
  args.x = pointer<void>(x), args.x_stride = x_stride, args.rows = rows, args.dim = dim;
  args.codebook = pointer<void>(codebook), args.codes = codes, args.mask = pointer<bool>(mask);
  args.workspace = workspace == 0 ? small : pointer<void>(workspace), args.index = pointer<int64_t>(index);
  args.quantized = pointer<void>(quantized), args.distance = pointer<void>(distance);
  args.counts = pointer<int64_t>(counts), args.sums = pointer<void>(sums), args.threads = threads;
  const auto kernel = is_double ? SOLID_IN_USE(nearest_code_double) : SOLID_IN_USE(nearest_code_float);
  check(kernel(args));
}

void segment_sum(bool is_double, uintptr_t values, int64_t stride, int64_t rows, int64_t dim, uintptr_t index,
                 uintptr_t mask, int64_t codes, uintptr_t sums, int threads) {
  check_numbers("segment_sum: expected index", pointer<int64_t>(index), rows, codes);
  solid::SegmentSum args;
  args.values = pointer<void>(values), args.stride = stride, args.rows = rows, args.dim = dim;
  args.index = pointer<int64_t>(index), args.mask = pointer<bool>(mask), args.codes = codes;
  args.sums = pointer<void>(sums), args.threads = threads;
  const auto kernel = is_double ? SOLID_IN_USE(segment_sum_double) : SOLID_IN_USE(segment_sum_float);
  check(kernel(args));
}

void symbols(bool is_double, int64_t batch, int64_t length, int64_t dim, bool looked_up, int64_t rows,
             uintptr_t sequences, uintptr_t symbol, uintptr_t age, uintptr_t h, int threads) {
  check_numbers("embed_symbols: expected sequences", pointer<int64_t>(sequences), batch * length,
                looked_up ? INT64_MAX : rows);
  solid::Symbols s;
  s.batch = batch;
  s.length = length;
  s.dim = dim;
  s.looked_up = looked_up;
  s.sequences = reinterpret_cast<const int64_t*>(sequences);
  s.symbol = reinterpret_cast<const void*>(symbol);
  s.age = reinterpret_cast<const void*>(age);
  s.h = reinterpret_cast<void*>(h);
  s.threads = threads;
  const auto kernel = is_double ? SOLID_IN_USE(symbols_double) : SOLID_IN_USE(symbols_float);
  if (kernel(s) != solid::Status::kOk) throw py::value_error("symbols: expected sizes that a kernel can use");
}

}  // namespace

PYBIND11_MODULE(_solid_ext, m) {
  m.doc() = "Native kernels of solid_ext; use them through solid_ext.ops.";
  m.def("build_info", &build_info);
  m.def("set_isa", &set_isa, py::arg("name"));
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("nearest_code", &nearest_code, Release());
  m.def("segment_sum", &segment_sum, Release());
  m.def("symbols", &symbols, Release());
  m.def("nearest_code_workspace", &nearest_code_workspace);
  solid::bind_dynamic_linear(m);
  solid::bind_gru(m);
#if defined(SOLID_CUDA)
  solid::bind_dynamic_linear_cuda(m);
  solid::bind_gru_cuda(m);
  solid::bind_nearest_code_cuda(m);
#endif
}
