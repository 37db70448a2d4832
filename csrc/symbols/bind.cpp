// Python's side of embed_symbols: addresses and sizes in, the status out.
#include "symbols/bind.h"

#include "common/bind.h"
#include "symbols/symbols.h"

namespace solid {
namespace {

void embed(bool is_double, int64_t batch, int64_t length, int64_t dim, bool looked_up, int64_t rows,
           Address sequences, Address symbol, Address age, Address h, int threads) {
  check_numbers("embed_symbols: expected sequences", pointer<int64_t>(sequences), batch * length,
                looked_up ? INT64_MAX : rows);
  Symbols s;
  s.batch = batch;
  s.length = length;
  s.dim = dim;
  s.looked_up = looked_up;
  s.sequences = pointer<const int64_t>(sequences);
  s.symbol = pointer<const void>(symbol);
  s.age = pointer<const void>(age);
  s.h = pointer<void>(h);
  s.threads = threads;
  const auto kernel = is_double ? SOLID_IN_USE(symbols_double) : SOLID_IN_USE(symbols_float);
  check_status("embed_symbols", kernel(s));
}

}  // namespace

void bind_symbols(pybind11::module_& m) { m.def("symbols", &embed, Release()); }

}  // namespace solid
