// Python's side of low_rank_mlp: addresses and sizes in, the status out.
#include "low_rank/bind.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "common/bind.h"
#include "low_rank/low_rank.h"

namespace py = pybind11;

namespace solid {
namespace {

using Addresses = std::vector<Address>;

// The shape of a call: is_double, B, T, r, D_0 .. D_P, k of the item and of the semantic branch (0: absent),
// delta, threads.
struct Shape {
  bool is_double;
  int64_t batch, targets, rank;
  std::vector<int64_t> sizes;
  int64_t item_code_dim, semantic_code_dim;
  double delta;
  int threads;

  LowRankMlp call() const {
    LowRankMlp mlp;
    mlp.is_double = is_double;
    mlp.batch = batch, mlp.targets = targets, mlp.rank = rank;
    mlp.layers = int64_t(sizes.size()) - 1;
    mlp.sizes = sizes.data();
    mlp.delta = delta;
    mlp.threads = threads;
    mlp.item.present = item_code_dim > 0, mlp.item.code_dim = item_code_dim;
    mlp.semantic.present = semantic_code_dim > 0, mlp.semantic.code_dim = semantic_code_dim;
    return mlp;
  }
};

// Tensors, and gradients likewise, in one order: x, z_item, z_semantic, gate; then for every layer each, the
// factors that enter, those that leave, their biases, maps and offsets of the item branch and of the semantic
// one. An absent one has address 0; an absent branch has no maps and offsets.
template <class Pointer, class Set>
void set_tensors(const Shape& shape, const Addresses& list, const Set& set) {
  if (list.size() < 4) throw py::value_error("low_rank_mlp: expected at least four addresses");
  const auto at = reinterpret_cast<Pointer const*>(list.data());
  const size_t layers = shape.sizes.size() - 1;
  const size_t tables = 3 + 2 * (shape.item_code_dim > 0) + 2 * (shape.semantic_code_dim > 0);
  if (list.size() != 4 + tables * layers)
    throw py::value_error("low_rank_mlp: expected an address for every tensor");
  const auto* const parameters = at + 4;
  const auto* const semantic = parameters + (shape.item_code_dim > 0 ? 5 : 3) * layers;
  set(at, parameters, parameters + layers, parameters + 2 * layers, parameters + 3 * layers,
      parameters + 4 * layers, semantic, semantic + layers);
}

LowRankMlp read(const Shape& shape, const Addresses& tensors, Address kept) {
  LowRankMlp mlp = shape.call();
  using In = const void*;
  set_tensors<In>(
      shape, tensors,
      [&](In const* first, In const* enters, In const* leaves, In const* biases, In const* item_maps,
          In const* item_offsets, In const* semantic_maps, In const* semantic_offsets) {
        mlp.x = first[0], mlp.item.z = first[1], mlp.semantic.z = first[2], mlp.gate = first[3];
        mlp.enters = enters, mlp.leaves = leaves, mlp.biases = biases;
        mlp.item.maps = item_maps, mlp.item.offsets = item_offsets;
        mlp.semantic.maps = semantic_maps, mlp.semantic.offsets = semantic_offsets;
      });
  mlp.kept = pointer(kept);
  return mlp;
}

void run(LowRankMlp& mlp, Address workspace, Status (*const kernel)(const LowRankMlp&)) {
  alignas(64) char stack[kStackWorkspace];
  mlp.workspace = workspace ? pointer(workspace) : stack;
  py::gil_scoped_release release;
  check_status("low_rank_mlp", kernel(mlp));
}

// Elements of what is kept, bytes of the workspace forward and backward.
py::tuple memory(const Shape& shape) {
  const LowRankMlp mlp = shape.call();
  const auto workspace = SOLID_IN_USE(low_rank_workspace);
  return py::make_tuple(SOLID_IN_USE(low_rank_kept)(mlp), workspace(mlp, false), workspace(mlp, true));
}

void forward(const Shape& shape, const Addresses& tensors, Address y, Address kept, Address workspace) {
  LowRankMlp mlp = read(shape, tensors, kept);
  mlp.y = pointer(y);
  run(mlp, workspace, SOLID_IN_USE(low_rank_forward));
}

void backward(const Shape& shape, const Addresses& tensors, Address kept, Address dy,
              const Addresses& gradients, Address workspace) {
  LowRankMlp mlp = read(shape, tensors, kept);
  mlp.dy = pointer(dy);
  using Out = void*;
  set_tensors<Out>(
      shape, gradients,
      [&](Out const* first, Out const* enters, Out const* leaves, Out const* biases, Out const* item_maps,
          Out const* item_offsets, Out const* semantic_maps, Out const* semantic_offsets) {
        mlp.dx = first[0], mlp.item.dz = first[1], mlp.semantic.dz = first[2], mlp.dgate = first[3];
        mlp.denters = enters, mlp.dleaves = leaves, mlp.dbiases = biases;
        mlp.item.dmaps = item_maps, mlp.item.doffsets = item_offsets;
        mlp.semantic.dmaps = semantic_maps, mlp.semantic.doffsets = semantic_offsets;
      });
  run(mlp, workspace, SOLID_IN_USE(low_rank_backward));
}

}  // namespace

void bind_low_rank(py::module_& m) {
  py::class_<Shape>(m, "LowRankShape")
      .def(py::init([](bool is_double, int64_t batch, int64_t targets, int64_t rank,
                       const std::vector<int64_t>& sizes, int64_t item_code_dim, int64_t semantic_code_dim,
                       double delta, int threads) {
        return Shape{is_double,         batch, targets, rank, sizes, item_code_dim,
                     semantic_code_dim, delta, threads};
      }));
  m.def("low_rank_memory", &memory);
  m.def("low_rank_forward", &forward);
  m.def("low_rank_backward", &backward);
}

}  // namespace solid
