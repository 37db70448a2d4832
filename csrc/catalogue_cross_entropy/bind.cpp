// Python's side of catalogue_cross_entropy: addresses and sizes in, the status out.
#include "catalogue_cross_entropy/bind.h"

#include <cstdint>

#include "catalogue_cross_entropy/catalogue_cross_entropy.h"
#include "common/bind.h"

namespace py = pybind11;

namespace solid {
namespace {

CatalogueCrossEntropy sized(bool is_double, int64_t rows, int64_t dim, int64_t items, int threads) {
  CatalogueCrossEntropy call;
  call.is_double = is_double;
  call.rows = rows;
  call.dim = dim;
  call.items = items;
  call.threads = threads;
  return call;
}

int64_t workspace(bool is_double, int64_t rows, int64_t dim, int64_t items, int threads, bool backward) {
  CatalogueCrossEntropy call = sized(is_double, rows, dim, items, threads);
  if (backward) call.weight = &call;  // any address: only whether there is one counts
  return SOLID_IN_USE(catalogue_cross_entropy_workspace)(call);
}

void run(bool is_double, int64_t rows, int64_t dim, int64_t items, int threads, Address state, Address table,
         Address target, Address bias, Address weight, Address loss, Address dstate, Address dtable,
         Address workspace) {
  check_numbers("catalogue_cross_entropy: expected target", pointer<const int64_t>(target), rows, items);
  CatalogueCrossEntropy call = sized(is_double, rows, dim, items, threads);
  call.state = pointer(state), call.table = pointer(table), call.target = pointer<const int64_t>(target);
  call.bias = pointer(bias), call.weight = pointer(weight), call.loss = pointer(loss);
  call.dstate = pointer(dstate), call.dtable = pointer(dtable), call.workspace = pointer(workspace);
  check_status("catalogue_cross_entropy", SOLID_IN_USE(catalogue_cross_entropy)(call));
}

}  // namespace

void bind_catalogue_cross_entropy(py::module_& m) {
  m.def("catalogue_cross_entropy_workspace", &workspace);
  m.def("catalogue_cross_entropy", &run, Release());
}

}  // namespace solid
