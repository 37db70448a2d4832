#include "cuda_host/host.h"

#include <cstdio>
#include <cstring>
#include <iostream>
#include <memory>
#include <vector>

namespace solid_test {
namespace {

std::string call(const std::string& name, int64_t order, const int64_t* values, int64_t count) {
  const auto entry = entries().find(name);
  if (entry == entries().end()) return "no entry of that name: " + name;
  try {
    Values arguments(values, count);
    entry->second(HostLauncher(Order{order}), arguments);
  } catch (const KernelError& error) {
    return error.what();
  }
  return "";
}

}  // namespace
}  // namespace solid_test

// The reason of a failure, or nothing; valid until the next call.
extern "C" const char* solid_host_call(const char* name, int64_t order, const int64_t* values,
                                       int64_t count) {
  static std::string message;
  message = solid_test::call(name, order, values, count);
  return message.c_str();
}

// Reads calls from stdin: a line "name order count", then `count` arguments, each a line "value n" or a line
// "array bytes" and the bytes. Answers with a line, empty or the reason of a failure, and all arrays.
int main() {
  std::string name;
  int64_t order = 0, count = 0;
  while (std::cin >> name >> order >> count) {
    std::vector<int64_t> values;
    std::vector<std::pair<char*, int64_t>> arrays;
    for (int64_t i = 0; i < count; ++i) {
      std::string kind;
      int64_t number = 0;
      std::cin >> kind >> number;
      std::cin.get();
      if (kind == "array") {
        char* bytes = static_cast<char*>(std::malloc(size_t(number)));
        std::cin.read(bytes, number);
        arrays.emplace_back(bytes, number);
        number = reinterpret_cast<int64_t>(bytes);
      }
      values.push_back(number);
    }
    std::cout << solid_test::call(name, order, values.data(), count) << '\n';
    for (const auto& [bytes, size] : arrays) {
      std::cout.write(bytes, size);
      std::free(bytes);
    }
    std::cout.flush();
  }
  return 0;
}
