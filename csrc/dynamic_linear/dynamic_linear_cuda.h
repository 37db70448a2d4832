// dynamic_mlp on a GPU: one call, and how it is divided. The meaning is that of dynamic_linear.h; here all
// tensors share one element type, hidden activations and the workspace are float32 (float64 for float64).
//
// Forward is one launch, backward two: the first takes gradients of x and z from layer to layer and leaves
// each layer's upstream gradient g [B, T, O_l] in the workspace, the second sums the parameters' gradients
// over the batch.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace solid {

constexpr int kMostLayers = 16;
constexpr int kItem = 0, kSemantic = 1, kBranches = 2;

struct DynamicCuda {
  Element type = Element::kFloat;
  bool tf32 =
      false;  // matrix products may round to TF32; always for narrow types, whose values TF32 holds exactly
  int64_t batch = 0;                    // B
  int64_t targets = 0;                  // T
  int layers = 0;                       // P, kMostLayers at most
  int64_t sizes[kMostLayers + 1] = {};  // D_0 .. D_P
  double delta = 0;
  bool tanh_last = false;
  int64_t code_dim[kBranches] = {};  // k; 0: no such branch
  const void* z[kBranches] = {};
  const void* maps[kBranches][kMostLayers] = {};
  const void* offsets[kBranches][kMostLayers] = {};
  const void* x = nullptr;
  void* y = nullptr;
  void* hidden = nullptr;  // h_1 .. h_{P-1}, [B, T, D_l] each; written forward, read backward
  // Backward; null: not wanted.
  const void* dy = nullptr;
  void* dx = nullptr;
  void* dz[kBranches] = {};
  void* dmaps[kBranches][kMostLayers] = {};
  void* doffsets[kBranches][kMostLayers] = {};
  void* workspace = nullptr;  // DynamicWorkspace(call).bytes
};

// What the choice of tiles asks of a device.
struct DynamicDevice {
  int64_t multiprocessors = 1;
  int64_t shared_bytes = 0;  // a block's most
};

// Reads a call from numbers in the order in which Python lists them; delta comes as its bits.
template <class Next>
DynamicCuda read_dynamic_sizes(const Next& next) {
  DynamicCuda call;
  call.type = static_cast<Element>(next());
  call.tf32 = next() != 0;
  call.batch = next();
  call.targets = next();
  call.layers = int(next());
  for (int l = 0; l <= call.layers && l <= kMostLayers; ++l) call.sizes[l] = next();
  call.delta = bit_cast<double>(next());
  call.tanh_last = next() != 0;
  for (int64_t& code_dim : call.code_dim) code_dim = next();
  return call;
}

template <class Next>
DynamicCuda read_dynamic_call(const Next& next, bool backward) {
  DynamicCuda call = read_dynamic_sizes(next);
  const auto pointer = [&] { return reinterpret_cast<void*>(next()); };
  const auto each_layer = [&](auto& table, int branch) {
    for (int l = 0; l < call.layers && l < kMostLayers && call.code_dim[branch] > 0; ++l)
      table[branch][l] = pointer();
  };
  call.x = pointer();
  for (const void*& z : call.z) z = pointer();
  for (int branch = 0; branch < kBranches; ++branch) {
    each_layer(call.maps, branch);
    each_layer(call.offsets, branch);
  }
  call.y = pointer();
  call.hidden = pointer();
  if (!backward) return call;
  call.dy = pointer();
  call.workspace = pointer();
  call.dx = pointer();
  for (void*& dz : call.dz) dz = pointer();
  for (int branch = 0; branch < kBranches; ++branch) {
    each_layer(call.dmaps, branch);
    each_layer(call.doffsets, branch);
  }
  return call;
}

// A map's gradient is summed by tasks: two tiles of 32 components of z x 32 outputs, of two rows where one
// tile holds all of z.
constexpr int kTile = 32;
constexpr int64_t kBatchStrip = 256;  // sequences that are worth a block of their own
constexpr int64_t kMostStrips = 16;   // partial sums of each parameter
constexpr int64_t kManyTasks = 2048;  // blocks that keep any device busy

SOLID_BOTH int64_t tiles_of(int64_t count) { return (count + kTile - 1) / kTile; }

SOLID_BOTH int64_t tasks_of(const DynamicCuda& call, int l, int branch) {
  const int64_t rows = call.sizes[l] + 1, code_tiles = tiles_of(call.code_dim[branch]);
  return (code_tiles == 1 ? (rows + 1) / 2 : rows * ((code_tiles + 1) / 2)) * tiles_of(call.sizes[l + 1]);
}

// Offsets into the workspace, in elements of 4 or 8 bytes: O(B (D + O + k)) T values, and partial sums.
struct DynamicWorkspace {
  int64_t gradients = 0;  // g of layer 0, 1, .. [B, T, O_l]
  int64_t inputs;         // dx before it is rounded [B, T, D_0]
  int64_t dz[kBranches];  // before it is rounded [B, k]
  int64_t partials;       // [strips][all parameters, branch by branch, layer by layer: map, offset]
  int64_t parameters;     // elements of one strip
  int64_t strips;
  int64_t counters;  // one int per task: strips that are done
  int64_t tasks;
  int64_t elements;

  explicit DynamicWorkspace(const DynamicCuda& call) {
    int64_t at = 0;
    for (int l = 0; l < call.layers; ++l) at += call.batch * call.targets * call.sizes[l + 1];
    inputs = at;
    at += call.batch * call.targets * call.sizes[0];
    parameters = tasks = 0;
    for (int branch = 0; branch < kBranches; ++branch) {
      dz[branch] = at;
      at += call.batch * call.code_dim[branch];
      for (int l = 0; l < call.layers && call.code_dim[branch] > 0; ++l) {
        parameters += (call.sizes[l] + 1) * (call.code_dim[branch] + 1) * call.sizes[l + 1];
        tasks += tasks_of(call, l, branch);
      }
    }
    const int64_t long_enough = (call.batch + kBatchStrip - 1) / kBatchStrip;
    const int64_t enough = (kManyTasks + tasks - 1) / (tasks > 0 ? tasks : 1);
    strips = long_enough < enough ? long_enough : enough;
    strips = strips < 1 ? 1 : strips > kMostStrips ? kMostStrips : strips;
    partials = at;
    if (strips > 1) at += strips * parameters;
    counters = at;
    elements = at + tasks;
  }

  int64_t bytes(const DynamicCuda& call) const { return elements * (call.type == Element::kDouble ? 8 : 4); }
};

// Kernels of a call that fails a check of Python's are not started: kBadArgument.
Status dynamic_forward_cuda(const Stream& stream, const DynamicCuda& call);
Status dynamic_backward_cuda(const Stream& stream, const DynamicCuda& call);

}  // namespace solid
