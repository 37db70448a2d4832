// Python's side of gru_last_state: addresses and sizes in, the status out.
#include "gru/bind.h"

#include <cstdint>

#include "common/bind.h"
#include "gru/gru.h"

namespace py = pybind11;

namespace solid {
namespace {

Gru sized(bool is_double, int64_t batch, int64_t length, int64_t inputs, int64_t hidden, int threads) {
  Gru gru;
  gru.is_double = is_double;
  gru.batch = batch;
  gru.length = length;
  gru.inputs = inputs;
  gru.hidden = hidden;
  gru.threads = threads;
  return gru;
}

Gru filled(bool is_double, int64_t batch, int64_t length, int64_t inputs, int64_t hidden, int threads,
           Address x, int64_t x_batch_stride, int64_t x_time_stride, Address mask, Address weight_input,
           Address weight_hidden, Address bias_input, Address bias_hidden, Address states,
           Address workspace) {
  Gru gru = sized(is_double, batch, length, inputs, hidden, threads);
  gru.x = pointer(x);
  gru.x_batch_stride = x_batch_stride;
  gru.x_time_stride = x_time_stride;
  gru.mask = pointer<const bool>(mask);
  gru.weight_input = pointer(weight_input);
  gru.weight_hidden = pointer(weight_hidden);
  gru.bias_input = pointer(bias_input);
  gru.bias_hidden = pointer(bias_hidden);
  gru.states = pointer(states);
  gru.workspace = pointer(workspace);
  return gru;
}

int64_t workspace(bool is_double, int64_t batch, int64_t length, int64_t inputs, int64_t hidden, int threads,
                  bool backward) {
  return SOLID_IN_USE(gru_workspace)(sized(is_double, batch, length, inputs, hidden, threads), backward);
}

void forward(bool is_double, int64_t batch, int64_t length, int64_t inputs, int64_t hidden, int threads,
             Address x, int64_t x_batch_stride, int64_t x_time_stride, Address mask, Address weight_input,
             Address weight_hidden, Address bias_input, Address bias_hidden, Address states,
             Address workspace, Address h) {
  Gru gru = filled(is_double, batch, length, inputs, hidden, threads, x, x_batch_stride, x_time_stride, mask,
                   weight_input, weight_hidden, bias_input, bias_hidden, states, workspace);
  gru.h = pointer(h);
  check_status("gru_last_state", SOLID_IN_USE(gru_forward)(gru));
}

void backward(bool is_double, int64_t batch, int64_t length, int64_t inputs, int64_t hidden, int threads,
              Address x, int64_t x_batch_stride, int64_t x_time_stride, Address mask, Address weight_input,
              Address weight_hidden, Address bias_input, Address bias_hidden, Address states,
              Address workspace, Address dh, Address dx, Address dweight_input, Address dweight_hidden,
              Address dbias_input, Address dbias_hidden) {
  Gru gru = filled(is_double, batch, length, inputs, hidden, threads, x, x_batch_stride, x_time_stride, mask,
                   weight_input, weight_hidden, bias_input, bias_hidden, states, workspace);
  gru.dh = pointer(dh);
  gru.dx = pointer(dx);
  gru.dweight_input = pointer(dweight_input);
  gru.dweight_hidden = pointer(dweight_hidden);
  gru.dbias_input = pointer(dbias_input);
  gru.dbias_hidden = pointer(dbias_hidden);
  check_status("gru_last_state", SOLID_IN_USE(gru_backward)(gru));
}

}  // namespace

void bind_gru(py::module_& m) {
  m.def("gru_workspace", &workspace);
  m.def("gru_forward", &forward, Release());
  m.def("gru_backward", &backward, Release());
}

}  // namespace solid
