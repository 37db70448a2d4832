#pragma once

#include <pybind11/pybind11.h>

namespace solid {

void bind_catalogue_cross_entropy_cuda(pybind11::module_& m);

}  // namespace solid
