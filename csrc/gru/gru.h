// The last state of a GRU over masked sequences: forward and backward.
//
//   h <- 0;  for t = 0 .. L - 1, where mask[b, t]:
//     r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
//     n = tanh(W_in x + b_in + r (W_hn h + b_hn))     h <- n + z (h - n)
//
// Shapes: B sequences of L positions, D inputs, H states; the gates r, z, n lie one after the other in each
// parameter.
//   x [B, L, D] with strides for B and L, mask [B, L], weight_input [3H, D], weight_hidden [3H, H],
//   bias_input, bias_hidden [3H], h [B, H], states [L, B, H]. All but x are dense and row-major.
// A position with mask False costs nothing: x is not read there, and its gradient is zero.
// NaN and infinity: forward as the formula takes them; a NaN stays in its sequence, infinity saturates a
// gate. Backward the same gradients are finite as in plain torch; whether another is NaN or infinite is not
// said.
//
// Kept for the backward: the state before each position (zeros where the mask is False); the gates are
// computed again. tanh and sigmoid are within 4 units in the last place, sigmoid for arguments above -87;
// below it is under 2e-38.
//
// Parameter gradients: the batch is cut into strips whose number and length depend on B alone; each strip
// adds its sequences in a fixed order, and the strips are added in the order of B. Results are bitwise equal
// for any number of threads. No array of B L H or more values is written but x's gradient and the states.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/status.h"

namespace solid {

struct Gru {
  bool is_double = false;
  int64_t batch = 0;   // B
  int64_t length = 0;  // L
  int64_t inputs = 0;  // D
  int64_t hidden = 0;  // H
  int threads = 1;
  const void* x = nullptr;
  int64_t x_batch_stride = 0, x_time_stride = 0;  // in elements
  const bool* mask = nullptr;
  const void* weight_input = nullptr;
  const void* weight_hidden = nullptr;
  const void* bias_input = nullptr;
  const void* bias_hidden = nullptr;
  void* h = nullptr;          // written forward
  void* states = nullptr;     // written forward unless null, read backward
  void* workspace = nullptr;  // gru_workspace bytes
  // Backward; null: not wanted.
  const void* dh = nullptr;  // [B, H]
  void* dx = nullptr;        // [B, L, D], dense
  void* dweight_input = nullptr;
  void* dweight_hidden = nullptr;
  void* dbias_input = nullptr;
  void* dbias_hidden = nullptr;
};

// gru_workspace: bytes, from the sizes, B through the number of strips (16 at most); every level gives the
// same answer.
#define SOLID_DECLARE(level)                            \
  namespace level {                                     \
  int64_t gru_workspace(const Gru& gru, bool backward); \
  Status gru_forward(const Gru& gru);                   \
  Status gru_backward(const Gru& gru);                  \
  }
SOLID_FOR_EACH_ISA(SOLID_DECLARE)
#undef SOLID_DECLARE

}  // namespace solid
