// Many targets: a block's weights are generated once and applied to all of them, forward and backward.
#pragma once

#include "dynamic_linear/dynamic_linear_cpu_backward.h"

namespace solid::SOLID_ISA {
namespace {

// out[t][o] = sum_i in[t][i] w[i][o] + w[D][o] for n targets.
template <int NT, class T>
SOLID_INLINE void apply(const T* in, int64_t in_features, const T* w, int64_t outputs, T* out) {
  constexpr int L = kLanes<T>;
  for_runs<kAccumulators / 4>(0, outputs, [&](auto run, int64_t o) {
    constexpr int n_max = decltype(run)::value;
    Vector<T> acc[NT][n_max];
    for (int n = 0; n < n_max; ++n) {
      for (int t = 0; t < NT; ++t) acc[t][n] = load(w + (in_features * outputs + o + n) * L);
    }
    for (int64_t i = 0; i < in_features; ++i) {
      Vector<T> x[NT];
      for (int t = 0; t < NT; ++t) x[t] = load(in + (t * in_features + i) * L);
      for (int n = 0; n < n_max; ++n) {
        const Vector<T> value = load(w + (i * outputs + o + n) * L);
        for (int t = 0; t < NT; ++t) acc[t][n] += x[t] * value;
      }
    }
    for (int n = 0; n < n_max; ++n) {
      for (int t = 0; t < NT; ++t) store(out + (t * outputs + o + n) * L, acc[t][n]);
    }
  });
}

template <class T>
void generate_all(const Layer<T>& layer, const T* z_item, const T* z_semantic, T delta, T* w) {
  for (int64_t i = 0; i <= layer.inputs; ++i) {
    for_runs<kAccumulators>(0, layer.outputs, [&](auto run, int64_t o) {
      constexpr int n_max = decltype(run)::value;
      Vector<T> acc[n_max][1];
      generate_clipped<n_max, 1>(layer, i, o, z_item, z_semantic, delta, acc);
      for (int n = 0; n < n_max; ++n) store(w + (i * layer.outputs + o + n) * kLanes<T>, acc[n][0]);
    });
  }
}

template <class T>
void apply_all(const Layer<T>& layer, int64_t targets, const Rows<T>& in, int64_t count, const T* w,
               T* in_tile, T* out_tile, const Rows<T>& out) {
  constexpr int L = kLanes<T>;
  const int64_t inputs = layer.inputs, outputs = layer.outputs;
  for_runs<kTargetRun>(0, targets, [&](auto run, int64_t t) {
    constexpr int n_max = decltype(run)::value;
    pack(in + t * inputs, targets * inputs, count, n_max * inputs, L, in_tile);
    apply<n_max>(in_tile, inputs, w, outputs, out_tile);
    if (layer.curved) tanh_tile(out_tile, n_max * outputs * L);
    unpack(out_tile, L, count, n_max * outputs, out + t * outputs, targets * outputs);
  });
}

template <class T>
void forward_block_targets(const Call<T>& call, int64_t first, int64_t count, T* scratch) {
  constexpr int L = kLanes<T>;
  const DynamicMlp& mlp = call.mlp;
  const int64_t m = widest(mlp), targets = mlp.targets;
  T* z_item = scratch;
  T* z_semantic = z_item + mlp.item.code_dim * L;
  T* in_tile = z_semantic + mlp.semantic.code_dim * L;
  T* out_tile = in_tile + kTargetRun * m * L;
  T* w = out_tile + kTargetRun * m * L;
  call.pack_conditions(first, count, L, z_item, z_semantic);
  for (int64_t l = 0; l < mlp.layers; ++l) {
    const Layer<T> layer = layer_of<T>(mlp, l);
    generate_all(layer, z_item, z_semantic, call.delta, w);
    apply_all(layer, targets, call.hidden(l) + first * targets * layer.inputs, count, w, in_tile, out_tile,
              (l + 1 == mlp.layers ? call.y : call.hidden(l + 1)) + first * targets * layer.outputs);
  }
}

// dx[t][i] = sum_o g[t][o] w[i][o]
template <int NT, class T>
SOLID_INLINE void apply_transposed(const T* g, int64_t outputs, const T* w, int64_t inputs, T* dx) {
  constexpr int L = kLanes<T>;
  for_runs<kAccumulators / 4>(0, inputs, [&](auto run, int64_t i) {
    constexpr int n_max = decltype(run)::value;
    Vector<T> acc[NT][n_max] = {};
    for (int64_t o = 0; o < outputs; ++o) {
      Vector<T> up[NT];
      for (int t = 0; t < NT; ++t) up[t] = load(g + (t * outputs + o) * L);
      for (int n = 0; n < n_max; ++n) {
        const Vector<T> value = load(w + ((i + n) * outputs + o) * L);
        for (int t = 0; t < NT; ++t) acc[t][n] += up[t] * value;
      }
    }
    for (int n = 0; n < n_max; ++n) {
      for (int t = 0; t < NT; ++t) store(dx + (t * inputs + i + n) * L, acc[t][n]);
    }
  });
}

// product[i][o] += sum_t in[t][i] g[t][o], and row D: sum_t g[t][o].
template <int NT, class T>
SOLID_INLINE void add_outer(const T* in, int64_t inputs, const T* g, int64_t outputs, T* product) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i <= inputs; ++i) {
    Vector<T> x[NT];
    for (int t = 0; t < NT; ++t) x[t] = i < inputs ? load(in + (t * inputs + i) * L) : splat(T(1));
    for (int64_t o = 0; o < outputs; ++o) {
      T* at = product + (i * outputs + o) * L;
      Vector<T> sum = load(at);
      for (int t = 0; t < NT; ++t) sum += x[t] * load(g + (t * outputs + o) * L);
      store(at, sum);
    }
  }
}

template <class T>
void backward_targets(const Call<T>& call, const Chunk<T>& chunk, int64_t l, int64_t first, int64_t slot,
                      int64_t count, T* scratch) {
  constexpr int L = kLanes<T>;
  const DynamicMlp& mlp = call.mlp;
  const Layer<T> layer = layer_of<T>(mlp, l);
  const int64_t inputs = layer.inputs, outputs = layer.outputs, targets = mlp.targets;
  const int64_t ki = mlp.item.code_dim, ks = mlp.semantic.code_dim, m = widest(mlp);
  T* z_item = scratch;
  T* z_semantic = z_item + ki * L;
  T* dz_item = z_semantic + ks * L;
  T* dz_semantic = dz_item + ki * L;
  T* masked = dz_semantic + ks * L;
  T* in_tile = masked + m * L;
  T* g = in_tile + kTargetRun * m * L;
  T* dx_tile = g + kTargetRun * m * L;
  T* w = dx_tile + kTargetRun * m * L;
  T* product = w + (m + 1) * m * L;
  const bool top = l + 1 == mlp.layers, even = (mlp.layers - l) % 2 == 0;
  const Rows<T> in = call.hidden(l) + first * targets * inputs;
  const Rows<T> y = call.y + first * targets * outputs;
  const Rows<T> dy = top ? call.dy + first * targets * outputs
                         : Rows<T>((even ? chunk.lower : chunk.upper) + slot * targets * outputs, false);
  const Rows<T> dx = l > 0    ? Rows<T>((even ? chunk.upper : chunk.lower) + slot * targets * inputs, false)
                     : mlp.dx ? call.dx + first * targets * inputs
                              : call.dx;
  call.pack_conditions(first, count, L, z_item, z_semantic);
  if (dx) generate_all(layer, z_item, z_semantic, call.delta, w);
  zero(product, (inputs + 1) * outputs * L);
  for_runs<kTargetRun>(0, targets, [&](auto run, int64_t t) {
    constexpr int n_max = decltype(run)::value;
    pack(in + t * inputs, targets * inputs, count, n_max * inputs, L, in_tile);
    pack(dy + t * outputs, targets * outputs, count, n_max * outputs, L, g);
    if (top && mlp.tanh_last) {
      pack(y + t * outputs, targets * outputs, count, n_max * outputs, L, dx_tile);
      through_tanh(dx_tile, n_max * outputs * L, g);
    }
    add_outer<n_max>(in_tile, inputs, g, outputs, product);
    if (dx) {
      apply_transposed<n_max>(g, outputs, w, inputs, dx_tile);
      if (l > 0) through_tanh(in_tile, n_max * inputs * L, dx_tile);
      unpack(dx_tile, L, count, n_max * inputs, dx + t * inputs, targets * inputs);
    }
  });
  // The conditions see the product as T = 1 sees x g^T; they add to what the layers above left.
  const auto condition_in = [&](const Rows<T>& from, int64_t code_dim, T* dz) {
    zero(dz, code_dim * L);
    if (from && !top) pack(from + first * code_dim, code_dim, count, code_dim, L, dz);
  };
  condition_in(call.dz_item, ki, dz_item);
  condition_in(call.dz_semantic, ks, dz_semantic);
  const int64_t pad = padded<T>(outputs), words = mask_words<T>(outputs);
  Word<T>* mask = chunk.mask(mlp, l) + slot;
  T* rows = chunk.rows(mlp, l) + slot * pad;
  Vector<T> one[1] = {splat(T(1))};
  for (int64_t i = 0; i <= inputs; ++i) {
    const T* row = product + i * outputs * L;
    T* to = rows + i * chunk.size * pad;
    unpack(row, L, count, outputs, {to, false}, pad);
    for (int64_t b = 0; b < count; ++b) zero(to + b * pad + outputs, pad - outputs);
    if (layer.item.present && layer.item.clipped) {
      Vector<T> unused[1] = {};
      Mask<T> any[1] = {};
      clipped_row<1>(layer.item, outputs, i, row, z_item, call.delta, mask + i * words * chunk.size,
                     chunk.size, masked, unused, any);
      codes_row<1>(layer.item, outputs, i, masked, one, dz_item);
    } else if (layer.item.present) {
      codes_row<1>(layer.item, outputs, i, row, one, dz_item);
    }
    if (layer.semantic.present) codes_row<1>(layer.semantic, outputs, i, row, one, dz_semantic);
  }
  if (call.dz_item) unpack(dz_item, L, count, ki, call.dz_item + first * ki, ki);
  if (call.dz_semantic) unpack(dz_semantic, L, count, ks, call.dz_semantic + first * ks, ks);
}

}  // namespace
}  // namespace solid::SOLID_ISA
