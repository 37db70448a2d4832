// Python's side of dynamic_linear: addresses and sizes in, the status out.
#include "dynamic_linear/bind.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "common/bind.h"
#include "dynamic_linear/dynamic_linear.h"

namespace py = pybind11;

namespace solid {
namespace {

using Addresses = std::vector<Address>;

const void* const* inputs(const Addresses& list) { return reinterpret_cast<const void* const*>(list.data()); }

void* const* outputs(const Addresses& list) {
  return list.empty() ? nullptr : reinterpret_cast<void* const*>(list.data());
}

DynamicBranch branch(int64_t code_dim, Address z, const Addresses& maps, const Addresses& offsets) {
  DynamicBranch b;
  b.present = code_dim > 0;
  b.code_dim = code_dim;
  b.z = pointer(z);
  b.maps = inputs(maps);
  b.offsets = inputs(offsets);
  return b;
}

DynamicMlp sized(int type, int64_t batch, int64_t targets, const std::vector<int64_t>& sizes, double delta,
                 bool tanh_last, int threads) {
  DynamicMlp mlp;
  mlp.type = static_cast<DynamicType>(type);
  mlp.batch = batch;
  mlp.targets = targets;
  mlp.layers = static_cast<int64_t>(sizes.size()) - 1;
  mlp.sizes = sizes.data();
  mlp.delta = delta;
  mlp.tanh_last = tanh_last;
  mlp.threads = threads;
  return mlp;
}

int64_t workspace(int type, int64_t batch, int64_t targets, const std::vector<int64_t>& sizes,
                  int64_t item_code_dim, int64_t semantic_code_dim, int threads, bool backward) {
  DynamicMlp mlp = sized(type, batch, targets, sizes, 0, false, threads);
  mlp.item = branch(item_code_dim, 0, {}, {});
  mlp.semantic = branch(semantic_code_dim, 0, {}, {});
  return SOLID_IN_USE(dynamic_workspace)(mlp, backward);
}

void forward(int type, int64_t batch, int64_t targets, const std::vector<int64_t>& sizes, double delta,
             bool tanh_last, int threads, Address x, int64_t item_code_dim, Address z_item,
             int64_t semantic_code_dim, Address z_semantic, const Addresses& item_maps,
             const Addresses& item_offsets, const Addresses& semantic_maps, const Addresses& semantic_offsets,
             Address y, Address hidden, Address scratch) {
  DynamicMlp mlp = sized(type, batch, targets, sizes, delta, tanh_last, threads);
  mlp.item = branch(item_code_dim, z_item, item_maps, item_offsets);
  mlp.semantic = branch(semantic_code_dim, z_semantic, semantic_maps, semantic_offsets);
  mlp.x = pointer(x);
  mlp.y = pointer(y);
  mlp.hidden = pointer(hidden);
  alignas(64) char stack[kStackWorkspace];
  mlp.workspace = scratch ? pointer(scratch) : stack;
  py::gil_scoped_release release;
  check_status("dynamic_mlp", SOLID_IN_USE(dynamic_forward)(mlp));
}

void backward(int type, int64_t batch, int64_t targets, const std::vector<int64_t>& sizes, double delta,
              bool tanh_last, int threads, Address x, int64_t item_code_dim, Address z_item,
              int64_t semantic_code_dim, Address z_semantic, const Addresses& item_maps,
              const Addresses& item_offsets, const Addresses& semantic_maps,
              const Addresses& semantic_offsets, Address y, Address hidden, Address dy, Address dx,
              Address dz_item, Address dz_semantic, const Addresses& item_dmaps,
              const Addresses& item_doffsets, const Addresses& semantic_dmaps,
              const Addresses& semantic_doffsets, Address scratch) {
  DynamicMlp mlp = sized(type, batch, targets, sizes, delta, tanh_last, threads);
  mlp.item = branch(item_code_dim, z_item, item_maps, item_offsets);
  mlp.semantic = branch(semantic_code_dim, z_semantic, semantic_maps, semantic_offsets);
  mlp.x = pointer(x);
  mlp.y = pointer(y);
  mlp.hidden = pointer(hidden);
  mlp.dy = pointer(dy);
  mlp.dx = pointer(dx);
  mlp.item.dz = pointer(dz_item);
  mlp.semantic.dz = pointer(dz_semantic);
  mlp.item.dmaps = outputs(item_dmaps);
  mlp.item.doffsets = outputs(item_doffsets);
  mlp.semantic.dmaps = outputs(semantic_dmaps);
  mlp.semantic.doffsets = outputs(semantic_doffsets);
  alignas(64) char stack[kStackWorkspace];
  mlp.workspace = scratch ? pointer(scratch) : stack;
  py::gil_scoped_release release;
  check_status("dynamic_mlp", SOLID_IN_USE(dynamic_backward)(mlp));
}

}  // namespace

void bind_dynamic_linear(py::module_& m) {
  m.attr("STACK_WORKSPACE") = kStackWorkspace;
  m.def("dynamic_workspace", &workspace);
  m.def("dynamic_forward", &forward);
  m.def("dynamic_backward", &backward);
}

}  // namespace solid
