// P layers with weights generated per sequence, none of them written to memory: forward and backward.
//
//   [W_l; b_l] = (z_c A_c + a_c) + clip(z_v A_v + a_v, -delta, delta)        per sequence, per layer l
//   h_0 = x,  h_{l+1} = act(h_l W_l + b_l),  y = h_P      act = tanh between layers; after the last if
//   tanh_last
//
// Shapes: B sequences, T targets each, D_l inputs and O_l = D_{l+1} outputs of layer l, k = code_dim
// components of a branch's condition z (v: item, c: semantic). All arrays are dense and row-major:
//   x [B, T, D_0], z [B, k], y [B, T, D_P]; map A [D_l + 1, k, O_l], offset a [D_l + 1, O_l]: row i < D_l
//   generates W[i, :], row D_l the bias, and for a fixed row the block [k, O_l] is streamed as it lies.
//
// Clip: the closed interval. The gradient passes where |w| <= delta; a NaN weight stays NaN forward and
// passes no gradient. With delta infinite nothing is clipped and nothing recomputed.
// NaN and infinity: forward as the formula takes them, within their sequence. Backward a weight that is
// clipped passes nothing, even where x is not finite, and the same gradients are finite as in plain torch;
// whether another is NaN or infinite is not said, for sums over conditions and outputs are taken in another
// order.
//
// Reductions over B run in the order of B, whatever the number of threads: results are bitwise equal for any.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/status.h"

namespace solid {

// Element types of (x, z, y and their gradients | maps, offsets, their gradients, hidden).
enum class DynamicType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };  // kBFloat16: the rest is float32

struct DynamicBranch {
  bool present = false;
  int64_t code_dim = 0;                  // k
  const void* z = nullptr;               // [B, k]
  const void* const* maps = nullptr;     // per layer
  const void* const* offsets = nullptr;  // per layer
  // Backward; null, or null in the list: not wanted.
  void* dz = nullptr;
  void* const* dmaps = nullptr;     // per layer
  void* const* doffsets = nullptr;  // per layer
};

struct DynamicMlp {
  DynamicType type = DynamicType::kFloat32;
  int64_t batch = 0;               // B
  int64_t targets = 0;             // T
  int64_t layers = 0;              // P
  const int64_t* sizes = nullptr;  // D_0 .. D_P
  double delta = 0;                // >= 0, may be infinite
  bool tanh_last = false;
  int threads = 1;
  DynamicBranch item, semantic;
  const void* x = nullptr;
  void* y = nullptr;       // written forward; read backward if tanh_last
  void* hidden = nullptr;  // h_1 .. h_{P-1}, one after the other: [B, T, D_l] each. Written forward
                           // (may be null if T = 1: not kept), read backward.
  // Backward.
  const void* dy = nullptr;
  void* dx = nullptr;         // null: not wanted
  void* workspace = nullptr;  // dynamic_workspace bytes
};

// dynamic_workspace: bytes of workspace: per-thread tiles, and backward a chunk of sequences whose length
// depends on B alone (its bits of clip mask and layer gradients). Sizes alone are read; every level gives the
// same answer.
#define SOLID_DECLARE(level)                                       \
  namespace level {                                                \
  int64_t dynamic_workspace(const DynamicMlp& mlp, bool backward); \
  Status dynamic_forward(const DynamicMlp& mlp);                   \
  Status dynamic_backward(const DynamicMlp& mlp);                  \
  }
SOLID_FOR_EACH_ISA(SOLID_DECLARE)
#undef SOLID_DECLARE

}  // namespace solid
