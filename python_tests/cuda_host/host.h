// Entry points of the host policy, called by address and number from Python (a shared library) or with copies
// of the arrays on the heap, exactly as long as they are (a program built with AddressSanitizer).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "cuda_host/block.h"

namespace solid_test {

// Integers and addresses in the order of the caller.
class Values {
 public:
  Values(const int64_t* values, int64_t count) : values_(values), count_(count) {}
  int64_t next() {
    if (at_ == count_) throw KernelError("expected more arguments");
    return values_[at_++];
  }
  template <class T>
  T* pointer() {
    return reinterpret_cast<T*>(next());
  }

 private:
  const int64_t* values_;
  int64_t count_;
  int64_t at_ = 0;
};

using Entry = std::function<void(const HostLauncher&, Values&)>;

inline std::map<std::string, Entry>& entries() {
  static std::map<std::string, Entry> all;
  return all;
}

struct Register {
  Register(const char* name, Entry entry) { entries()[name] = std::move(entry); }
};

inline void expect_ok(solid::Status status) {
  if (status != solid::Status::kOk) throw KernelError("status " + std::to_string(int(status)));
}

}  // namespace solid_test
