#pragma once

#include <pybind11/pybind11.h>

namespace solid {

void bind_nearest_code(pybind11::module_& m);

}  // namespace solid
