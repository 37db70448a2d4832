// gru_last_state on a GPU: one launch forward, two backward. The meaning is that of gru.h; all tensors but
// the mask share one element type, states and the workspace are float32 (float64 for float64).
//
// Parameter gradients: block i of n takes tiles i, i + n, .. of the batch and has sums of its own in the
// workspace; the second launch adds the blocks in their order. n depends on B alone, so the result is the
// same every time.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace solid {

struct GruCuda {
  Element type = Element::kFloat;
  int64_t batch = 0;   // B
  int64_t length = 0;  // L
  int64_t inputs = 0;  // D
  int64_t hidden = 0;  // H
  const void* x = nullptr;
  int64_t x_batch_stride = 0, x_time_stride = 0;  // in elements
  const bool* mask = nullptr;                     // [B, L]
  const void* weight_input = nullptr;
  const void* weight_hidden = nullptr;
  const void* bias_input = nullptr;
  const void* bias_hidden = nullptr;
  void* h = nullptr;       // written forward
  void* states = nullptr;  // [L, B, H], written forward unless null, read backward
  // Backward; null: not wanted.
  const void* dh = nullptr;
  void* workspace = nullptr;  // gru_cuda_bytes
  void* dx = nullptr;         // [B, L, D], dense
  void* dweight_input = nullptr;
  void* dweight_hidden = nullptr;
  void* dbias_input = nullptr;
  void* dbias_hidden = nullptr;
};

template <class Next>
GruCuda read_gru_call(const Next& next, bool backward) {
  const auto pointer = [&] { return reinterpret_cast<void*>(next()); };
  GruCuda gru;
  gru.type = static_cast<Element>(next());
  gru.batch = next();
  gru.length = next();
  gru.inputs = next();
  gru.hidden = next();
  gru.x = pointer();
  gru.x_batch_stride = next();
  gru.x_time_stride = next();
  gru.mask = static_cast<const bool*>(pointer());
  gru.weight_input = pointer();
  gru.weight_hidden = pointer();
  gru.bias_input = pointer();
  gru.bias_hidden = pointer();
  gru.states = pointer();
  if (!backward) {
    gru.h = pointer();
    return gru;
  }
  gru.dh = pointer();
  gru.workspace = pointer();
  gru.dx = pointer();
  gru.dweight_input = pointer();
  gru.dweight_hidden = pointer();
  gru.dbias_input = pointer();
  gru.dbias_hidden = pointer();
  return gru;
}

constexpr int64_t kGruGates = 3;   // r, z, n
constexpr int64_t kGruSums = 256;  // blocks, and so partial sums, of a backward at most
constexpr int64_t kGruLeast = 32;  // sequences that are worth a partial sum

// All four parameters, one after the other.
SOLID_BOTH int64_t gru_parameters(int64_t inputs, int64_t hidden) {
  return kGruGates * hidden * (inputs + hidden + 2);
}

SOLID_BOTH int64_t gru_blocks(int64_t batch) {
  const int64_t blocks = (batch + kGruLeast - 1) / kGruLeast;
  return blocks < kGruSums ? blocks : kGruSums;
}

inline int64_t gru_cuda_bytes(Element type, int64_t batch, int64_t inputs, int64_t hidden) {
  return gru_blocks(batch) * gru_parameters(inputs, hidden) * (type == Element::kDouble ? 8 : 4);
}

Status gru_forward_cuda(const Stream& stream, const GruCuda& gru);
Status gru_backward_cuda(const Stream& stream, const GruCuda& gru);

}  // namespace solid
