// Python's side of dropout: addresses and sizes in, the status out.
#include "dropout/bind.h"

#include "common/bind.h"
#include "dropout/dropout.h"

namespace solid {
namespace {

void dropout(bool is_double, int64_t count, Address x, Address key, uint32_t threshold, double scale,
             Address y, int threads, int64_t first) {
  Dropout d;
  d.count = count;
  d.first = first;
  d.x = pointer<const void>(x);
  d.key = pointer<const uint64_t>(key);
  d.threshold = threshold;
  d.scale = scale;
  d.y = pointer<void>(y);
  d.threads = threads;
  const auto kernel = is_double ? SOLID_IN_USE(dropout_double) : SOLID_IN_USE(dropout_float);
  check_status("dropout", kernel(d));
}

}  // namespace

void bind_dropout(pybind11::module_& m) {
  using pybind11::arg;
  m.def("dropout", &dropout, Release(), arg("is_double"), arg("count"), arg("x"), arg("key"),
        arg("threshold"), arg("scale"), arg("y"), arg("threads"), arg("first") = 0);
}

}  // namespace solid
