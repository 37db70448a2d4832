// What the bindings of all operations share: addresses, the level in use, errors.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "common/isa.h"
#include "common/status.h"

namespace solid {

using Address = uintptr_t;  // of a tensor's memory; 0: none
using Release = pybind11::call_guard<pybind11::gil_scoped_release>;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Bytes: up to this size an allocation would cost more than it holds, and a workspace lies on the stack.
inline constexpr int64_t kStackWorkspace = 65536;

inline void check_status(const char* name, Status status) {
  if (status != Status::kOk)
    throw pybind11::value_error(std::string(name) + ": expected arguments that a kernel can use");
}

// Numbers that a kernel takes as addresses: refused outside 0 .. rows - 1, a pass that is lost in the
// kernel's time.
inline void check_numbers(const char* name, const int64_t* numbers, int64_t count, int64_t rows) {
  const auto outside = [=](int64_t number) { return uint64_t(number) >= uint64_t(rows); };
  bool any = false;
  for (int64_t i = 0; i < count; ++i) any |= outside(numbers[i]);
  for (int64_t i = 0; any && i < count; ++i)
    if (outside(numbers[i]))
      throw pybind11::value_error(std::string(name) + " in 0 .. " + std::to_string(rows - 1) + ", got " +
                                  std::to_string(numbers[i]));
}

}  // namespace solid
