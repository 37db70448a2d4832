// Kernels never throw, print or abort: they return a Status, and Python turns it into an exception.
#pragma once

namespace solid {

enum class Status : int {
  kOk = 0,
  kBadArgument = 1,  // a size or pointer that the Python checks should have refused
};

}  // namespace solid
