// P layers of low rank around cores that are generated per sequence: forward and backward, one call each.
//
//   [S_l; s_l] = (z_c A_c + a_c) + clip(z_v A_v + a_v, -delta, delta)        per sequence, per layer l
//   h_0 = x,  h_{l+1} = act(((h_l U_l) S_l + s_l) V_l + b_l)                 act = tanh between layers
//   y = h_P,  or  y = x + gate h_P  with a gate, which needs D_P = D_0
//
// Shapes: B >= 1 sequences, T >= 1 targets each, D_l inputs and O_l = D_{l+1} outputs of layer l, rank r, k
// components of a branch's condition (v: item, c: semantic). All arrays are dense and row-major:
//   x [B, T, D_0], z [B, k], y [B, T, D_P]; enter U_l^T [r, D_l], leave V_l^T [O_l, r], bias [O_l];
//   map A [r + 1, k, r], offset a [r + 1, r]: row i < r generates S[i, :], row r generates s.
//
// Kept for the backward: h_l for l > 0, h_l U_l, the cores [S; s] and one bit for each of their weights,
// which says that its clip passes a gradient. A core is small (r^2 + r values), so that keeping it costs less
// than generating it again: one of seven products with the maps.
//
// Clip, NaN and infinity: as dynamic_linear.h says of its generated weights.
//
// Sums over B and T run in blocks whose sizes depend on B and T alone, and in their order: results are
// bitwise equal for any number of threads.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/status.h"
#include "dynamic_linear/dynamic_linear.h"

namespace solid {

struct LowRankMlp {
  bool is_double = false;
  int64_t batch = 0;               // B
  int64_t targets = 0;             // T
  int64_t layers = 0;              // P
  int64_t rank = 0;                // r
  const int64_t* sizes = nullptr;  // D_0 .. D_P
  double delta = 0;                // >= 0, may be infinite
  int threads = 1;
  DynamicBranch item, semantic;
  const void* const* enters = nullptr;  // per layer, as leaves and biases
  const void* const* leaves = nullptr;
  const void* const* biases = nullptr;
  const void* gate = nullptr;  // one number; null: y is what the layers give
  const void* x = nullptr;
  void* y = nullptr;     // written forward
  void* kept = nullptr;  // low_rank_kept elements. Written forward (null: nothing is kept), read backward
  // Backward; null, or null in the list: not wanted.
  const void* dy = nullptr;
  void* dx = nullptr;
  void* dgate = nullptr;
  void* const* denters = nullptr;
  void* const* dleaves = nullptr;
  void* const* dbiases = nullptr;
  void* workspace = nullptr;  // low_rank_workspace bytes
};

// low_rank_kept: elements; low_rank_workspace: bytes. Of the call its sizes, threads, the presence of
// branches and whether delta is finite are read; every level gives the same answer.
#define SOLID_DECLARE(level)                                        \
  namespace level {                                                 \
  int64_t low_rank_kept(const LowRankMlp& mlp);                     \
  int64_t low_rank_workspace(const LowRankMlp& mlp, bool backward); \
  Status low_rank_forward(const LowRankMlp& mlp);                   \
  Status low_rank_backward(const LowRankMlp& mlp);                  \
  }
SOLID_FOR_EACH_ISA(SOLID_DECLARE)
#undef SOLID_DECLARE

}  // namespace solid
