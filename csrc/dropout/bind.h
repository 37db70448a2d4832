#pragma once

#include <pybind11/pybind11.h>

namespace solid {

void bind_dropout(pybind11::module_& m);

}  // namespace solid
