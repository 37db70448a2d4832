// Kernels never throw, print or abort: they return a Status, and Python turns it into an exception.
#pragma once

namespace solid {

enum class Status : int {
  kOk = 0,
  kBadArgument = 1,  // a size or pointer that the Python checks should have refused
  kTooLarge = 2,  // more blocks than a grid holds, or a block that needs more shared memory than a device has
  kLaunchFailed = 3,  // cuda_message() has the reason
};

}  // namespace solid
