// The compiled module `_solid_ext`: one thin function per operation and device.
//
// Tensors arrive as addresses and sizes that Python has checked; nothing here knows torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "catalogue_cross_entropy/bind.h"
#include "catalogue_cross_entropy/bind_cuda.h"
#include "common/isa.h"
#include "cuda/bind.h"
#include "dropout/bind.h"
#include "dynamic_linear/bind.h"
#include "dynamic_linear/bind_cuda.h"
#include "gru/bind.h"
#include "gru/bind_cuda.h"
#include "low_rank/bind.h"
#include "nearest_code/bind.h"
#include "nearest_code/bind_cuda.h"
#include "segment_sum/bind.h"
#include "segment_sum/bind_cuda.h"
#include "symbols/bind.h"

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

}  // namespace

PYBIND11_MODULE(_solid_ext, m) {
  m.doc() = "Native kernels of solid_ext; use them through solid_ext.ops.";
  m.def("build_info", &build_info);
  m.def("set_isa", &set_isa, py::arg("name"));
  solid::bind_catalogue_cross_entropy(m);
  solid::bind_dropout(m);
  solid::bind_dynamic_linear(m);
  solid::bind_gru(m);
  solid::bind_low_rank(m);
  solid::bind_nearest_code(m);
  solid::bind_segment_sum(m);
  solid::bind_symbols(m);
#if defined(SOLID_CUDA)
  solid::bind_catalogue_cross_entropy_cuda(m);
  solid::bind_dynamic_linear_cuda(m);
  solid::bind_gru_cuda(m);
  solid::bind_nearest_code_cuda(m);
  solid::bind_segment_sum_cuda(m);
#endif
}
