#pragma once

#include <pybind11/pybind11.h>

namespace solid {

void bind_low_rank(pybind11::module_& m);

}  // namespace solid
