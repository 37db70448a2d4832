// What the kernels of dynamic_mlp ask of a call.
#pragma once

#include "dynamic_linear/dynamic_linear_cuda.h"

namespace solid {

SOLID_DEVICE float hyperbolic_tangent(float value) { return tanhf(value); }
SOLID_DEVICE double hyperbolic_tangent(double value) { return tanh(value); }

SOLID_BOTH int64_t widest_of(const DynamicCuda& call) {
  int64_t most = 0;
  for (int l = 0; l <= call.layers; ++l) most = call.sizes[l] > most ? call.sizes[l] : most;
  return most;
}

SOLID_BOTH bool curved(const DynamicCuda& call, int l) { return l + 1 < call.layers || call.tanh_last; }

// The branch is bounded by delta, so that its backward needs the mask of the clip.
SOLID_BOTH bool bounded(const DynamicCuda& call, int branch) {
  return branch == kItem && call.delta <= __DBL_MAX__;
}

// h_l, l >= 1.
template <class T>
SOLID_DEVICE T* hidden_of(const DynamicCuda& call, int l) {
  T* at = static_cast<T*>(call.hidden);
  for (int j = 1; j < l; ++j) at += call.batch * call.targets * call.sizes[j];
  return at;
}

// What layer l reads: element i of x or of h_l.
template <class T>
SOLID_DEVICE T layer_input(const DynamicCuda& call, int l, const T* hidden, int64_t i) {
  return l == 0 ? load_element<T>(call.x, call.type, i) : hidden[i];
}

// g of layer l in the workspace, [B, T, O_l].
template <class T>
SOLID_DEVICE T* gradient_of(const DynamicCuda& call, int l) {
  T* at = static_cast<T*>(call.workspace);
  for (int j = 0; j < l; ++j) at += call.batch * call.targets * call.sizes[j + 1];
  return at;
}

// How many strips of each task of the maps' gradients have ended.
template <class T>
SOLID_DEVICE int* counters_of(const DynamicCuda& call, const DynamicWorkspace& places) {
  return reinterpret_cast<int*>(static_cast<T*>(call.workspace) + places.counters);
}

// By the first launch of the backward, so that the second counts from zero.
template <class T, class Block>
SOLID_DEVICE void zero_counters(Block& block, const DynamicCuda& call, const DynamicWorkspace& places) {
  if (block.index() != 0) return;
  int* const counters = counters_of<T>(call, places);
  for (int64_t i = block.thread(); i < places.tasks; i += Block::kThreads) counters[i] = 0;
}

// dy through the last layer's tanh, if it has one.
template <class T>
SOLID_DEVICE T top_gradient(const DynamicCuda& call, int64_t i) {
  const T up = load_element<T>(call.dy, call.type, i);
  if (!call.tanh_last) return up;
  const T y = load_element<T>(call.y, call.type, i);
  return up * (T(1) - y * y);
}

}  // namespace solid
