// One call of dynamic_mlp on the CPU: its layers and tensors as a kernel reads them, and the generated
// weights.
#pragma once

#include "common/tiles.h"
#include "dynamic_linear/dynamic_linear.h"

namespace solid::SOLID_ISA {
namespace {

template <class T>
struct Branch {
  bool present, clipped;  // clipped: bounded by delta, so the backward needs its mask
  int64_t code_dim;
  const T* map;
  const T* offset;
};

template <class T>
struct Layer {
  int64_t inputs, outputs;
  bool curved;  // tanh after it
  Branch<T> item, semantic;
};

template <class T>
Layer<T> layer_of(const DynamicMlp& mlp, int64_t l) {
  const auto branch = [&](const DynamicBranch& b, bool bounded) {
    Branch<T> out{b.present, bounded, b.code_dim, nullptr, nullptr};
    if (b.present) {
      out.map = static_cast<const T*>(b.maps[l]);
      out.offset = static_cast<const T*>(b.offsets[l]);
    }
    return out;
  };
  const bool bounded = mlp.delta <= __DBL_MAX__;
  return {mlp.sizes[l], mlp.sizes[l + 1], l + 1 < mlp.layers || mlp.tanh_last, branch(mlp.item, bounded),
          branch(mlp.semantic, false)};
}

// acc[n] += sum_j s[j * step + n * stride] tile[j]. With `ahead`, the values that far on are fetched for
// later: for maps that overflow the inner caches (D = O = k = 64: backward +15 %, 128: +25 %; 32: nothing
// lost).
template <int N, int R, class T>
SOLID_INLINE void contract(const T* s, int64_t step, int64_t stride, int64_t count, const T* tile,
                           Vector<T> (&acc)[N][R], int64_t ahead = 0) {
  for (int64_t j = 0; j < count; ++j) {
    if (ahead) __builtin_prefetch(s + ahead + j * step + (j % N) * stride);
    Vector<T> row[R];
    for (int r = 0; r < R; ++r) row[r] = load(tile + (j * R + r) * kLanes<T>);
    for (int n = 0; n < N; ++n) {
      const T value = s[j * step + n * stride];
      for (int r = 0; r < R; ++r) acc[n][r] += value * row[r];
    }
  }
}

// Generated weights of row i, outputs o .. o + N - 1, of one branch; added to acc if `add`. With a panel, row
// i of the map is read from there, where the values of these outputs lie together: [k][N] at o k.
template <int N, int R, class T>
SOLID_INLINE void generate(const Branch<T>& branch, int64_t outputs, int64_t i, int64_t o, const T* z,
                           bool add, Vector<T> (&acc)[N][R], const T* panel = nullptr) {
  const T* offset = branch.offset + i * outputs + o;
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < R; ++r) acc[n][r] = add ? acc[n][r] + offset[n] : splat(offset[n]);
  }
  if (panel) {
    contract<N, R>(panel + o * branch.code_dim, N, 1, branch.code_dim, z, acc);
  } else {
    contract<N, R>(branch.map + i * branch.code_dim * outputs + o, outputs, 1, branch.code_dim, z, acc);
  }
}

// W[i, o .. o + N - 1], both branches; their panels lie one after the other, if there are any.
template <int N, int R, class T>
SOLID_INLINE void generate_clipped(const Layer<T>& layer, int64_t i, int64_t o, const T* z_item,
                                   const T* z_semantic, T delta, Vector<T> (&acc)[N][R],
                                   const T* panels = nullptr) {
  const T* const semantic = panels ? panels + layer.item.code_dim * layer.outputs : nullptr;
  if (layer.item.present) {
    generate<N, R>(layer.item, layer.outputs, i, o, z_item, false, acc, panels);
    const Vector<T> bound = splat(delta);
    for (int n = 0; n < N; ++n) {
      for (int r = 0; r < R; ++r) acc[n][r] = clip(acc[n][r], bound);
    }
    if (layer.semantic.present)
      generate<N, R>(layer.semantic, layer.outputs, i, o, z_semantic, true, acc, semantic);
  } else {
    generate<N, R>(layer.semantic, layer.outputs, i, o, z_semantic, false, acc, semantic);
  }
}

template <class T>
constexpr int kBlockVectors = sizeof(T) == 4 ? 2 : 1;  // R of a full block, T = 1; float64 is for checking
constexpr int64_t kTileBytes = 128;  // of one feature of a full block at the widest instruction set

template <class T>
struct Call {
  const DynamicMlp& mlp;
  bool narrow;
  Rows<T> x, y, z_item, z_semantic, dy, dx, dz_item, dz_semantic;
  T delta;

  explicit Call(const DynamicMlp& m)
      : mlp(m),
        narrow(m.type == DynamicType::kBFloat16),
        x(m.x, narrow),
        y(m.y, narrow),
        z_item(m.item.z, narrow),
        z_semantic(m.semantic.z, narrow),
        dy(m.dy, narrow),
        dx(m.dx, narrow),
        dz_item(m.item.dz, narrow),
        dz_semantic(m.semantic.dz, narrow),
        delta(T(m.delta)) {}

  // h_l, l = 0 .. P - 1: what layer l reads.
  Rows<T> hidden(int64_t l) const {
    if (l == 0) return x;
    T* at = static_cast<T*>(mlp.hidden);
    for (int64_t j = 1; j < l; ++j) at += mlp.batch * mlp.targets * mlp.sizes[j];
    return {at, false};
  }

  void pack_conditions(int64_t first, int64_t count, int64_t lanes, T* item, T* semantic) const {
    const int64_t ki = mlp.item.code_dim, ks = mlp.semantic.code_dim;
    if (mlp.item.present) pack(z_item + first * ki, ki, count, ki, lanes, item);
    if (mlp.semantic.present) pack(z_semantic + first * ks, ks, count, ks, lanes, semantic);
  }
};

int64_t widest(const DynamicMlp& mlp) {
  int64_t m = 0;
  for (int64_t l = 0; l <= mlp.layers; ++l) m = mlp.sizes[l] > m ? mlp.sizes[l] : m;
  return m;
}

}  // namespace
}  // namespace solid::SOLID_ISA
