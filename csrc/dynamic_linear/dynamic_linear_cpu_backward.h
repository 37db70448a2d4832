// Backward with one target: gradients of inputs and conditions. That the generated weight is linear in z
// saves the weights: dynamic_linear_cpu.cpp.
#pragma once

#include "dynamic_linear/dynamic_linear_cpu_chunk.h"

namespace solid::SOLID_ISA {
namespace {

// The part of a branch that is not clipped: dz += x U_i, dx += <g, W[i, :]>.
template <int R, class T>
SOLID_APART void unclipped_row(const Branch<T>& branch, int64_t outputs, int64_t i, const T* g,
                               const Vector<T> (&x)[R], const T* z, T* dz, Vector<T> (&dx)[R]) {
  const T* map = branch.map + i * branch.code_dim * outputs;
  for_runs<kAccumulators / R>(0, branch.code_dim, [&](auto run, int64_t k) {
    constexpr int n_max = decltype(run)::value;
    Vector<T> u[n_max][R] = {}, sum[R] = {};
    contract<n_max, R>(map + k * outputs, 1, outputs, outputs, g, u, branch.code_dim * outputs);
    for (int n = 0; n < n_max; ++n) {
      for (int r = 0; r < R; ++r) {
        const int64_t at = ((k + n) * R + r) * kLanes<T>;
        store(dz + at, load(dz + at) + x[r] * u[n][r]);
        sum[r] += load(z + at) * u[n][r];
      }
    }
    for (int r = 0; r < R; ++r) dx[r] += sum[r];
  });
  const T* offset = branch.offset + i * outputs;
  for (int64_t o = 0; o < outputs; ++o) {
    for (int r = 0; r < R; ++r) dx[r] += offset[o] * load(g + (o * R + r) * kLanes<T>);
  }
}

// Weights of row i of the item branch, N at a time: their mask as bits, masked <- mask ? g : 0, dx += g
// clip(w); any: the sequences in which one of them passes a gradient.
template <int R, class T>
SOLID_APART void clipped_row(const Branch<T>& branch, int64_t outputs, int64_t i, const T* g, const T* z,
                             T delta, Word<T>* words, int64_t words_stride, T* masked, Vector<T> (&dx)[R],
                             Mask<T> (&any)[R]) {
  constexpr int64_t kBits = 8 * sizeof(T);
  const Vector<T> bound = splat(delta);
  for (int64_t begin = 0; begin < outputs; begin += kBits) {
    Mask<T> bits[R] = {};
    for_runs<kAccumulators / R>(begin, least(begin + kBits, outputs), [&](auto run, int64_t o) {
      constexpr int n_max = decltype(run)::value;
      Vector<T> w[n_max][R];
      generate<n_max, R>(branch, outputs, i, o, z, false, w);
      for (int n = 0; n < n_max; ++n) {
        const Word<T> bit = Word<T>(uint64_t(1) << (o + n - begin));
        for (int r = 0; r < R; ++r) {
          const int64_t at = ((o + n) * R + r) * kLanes<T>;
          const Vector<T> up = load(g + at);
          const Mask<T> inside = (w[n][r] <= bound) & (w[n][r] >= -bound);
          bits[r] |= inside & bit;
          store(masked + at, inside ? up : Vector<T>{});
          dx[r] += up * clip(w[n][r], bound);
        }
      }
    });
    for (int r = 0; r < R; ++r) {
      __builtin_memcpy(words + r * kLanes<T>, &bits[r], sizeof bits[r]);
      any[r] |= bits[r];
    }
    words += words_stride;
  }
}

// dz += x U_i for an already masked g.
template <int R, class T>
SOLID_APART void codes_row(const Branch<T>& branch, int64_t outputs, int64_t i, const T* g,
                           const Vector<T> (&x)[R], T* dz) {
  const T* map = branch.map + i * branch.code_dim * outputs;
  for_runs<kAccumulators / R>(0, branch.code_dim, [&](auto run, int64_t k) {
    constexpr int n_max = decltype(run)::value;
    Vector<T> u[n_max][R] = {};
    contract<n_max, R>(map + k * outputs, 1, outputs, outputs, g, u, branch.code_dim * outputs);
    for (int n = 0; n < n_max; ++n) {
      for (int r = 0; r < R; ++r) {
        const int64_t at = ((k + n) * R + r) * kLanes<T>;
        store(dz + at, load(dz + at) + x[r] * u[n][r]);
      }
    }
  });
}

template <int R, class T>
void backward_block(const Call<T>& call, const Chunk<T>& chunk, int64_t first, int64_t slot, int64_t count,
                    T* scratch) {
  constexpr int NB = R * kLanes<T>;
  const DynamicMlp& mlp = call.mlp;
  const int64_t ki = mlp.item.code_dim, ks = mlp.semantic.code_dim, width = widest(mlp) * NB;
  T* z_item = scratch;
  T* z_semantic = z_item + ki * NB;
  T* dz_item = z_semantic + ks * NB;
  T* dz_semantic = dz_item + ki * NB;
  T* in = dz_semantic + ks * NB;
  T* masked = in + width;
  T* g = masked + width;
  T* dx = g + width;
  call.pack_conditions(first, count, NB, z_item, z_semantic);
  zero(dz_item, (ki + ks) * NB);
  const int64_t last = mlp.sizes[mlp.layers];
  pack(call.dy + first * last, last, count, last, NB, g);
  if (mlp.tanh_last) {
    pack(call.y + first * last, last, count, last, NB, masked);
    through_tanh(masked, last * NB, g);
  }
  for (int64_t l = mlp.layers - 1; l >= 0; --l) {
    const Layer<T> layer = layer_of<T>(mlp, l);
    const int64_t inputs = layer.inputs, outputs = layer.outputs, pad = padded<T>(outputs);
    const int64_t words = mask_words<T>(outputs);
    pack(call.hidden(l) + first * inputs, inputs, count, inputs, NB, in);
    T* rows = chunk.rows(mlp, l) + slot * pad;
    unpack(g, NB, count, outputs, {rows, false}, pad);
    for (int64_t b = 0; b < count; ++b) zero(rows + b * pad + outputs, pad - outputs);
    Word<T>* mask = chunk.mask(mlp, l) + slot;
    for (int64_t i = 0; i <= inputs; ++i) {
      Vector<T> x[R], sum[R] = {};
      for (int r = 0; r < R; ++r) x[r] = i < inputs ? load(in + (i * R + r) * kLanes<T>) : splat(T(1));
      if (layer.item.present && layer.item.clipped) {
        Mask<T> any[R] = {};
        clipped_row<R>(layer.item, outputs, i, g, z_item, call.delta, mask + i * words * chunk.size,
                       chunk.size, masked, sum, any);
        // Where all weights of the row are clipped, an x that is not finite reaches z as little as any other.
        Vector<T> through[R];
        for (int r = 0; r < R; ++r) through[r] = any[r] != 0 ? x[r] : Vector<T>{};
        if (mlp.item.dz) codes_row<R>(layer.item, outputs, i, masked, through, dz_item);
      } else if (layer.item.present) {
        unclipped_row<R>(layer.item, outputs, i, g, x, z_item, dz_item, sum);
      }
      if (layer.semantic.present) {
        unclipped_row<R>(layer.semantic, outputs, i, g, x, z_semantic, dz_semantic, sum);
      }
      if (i < inputs) {
        for (int r = 0; r < R; ++r) store(dx + (i * R + r) * kLanes<T>, sum[r]);
      }
    }
    if (l > 0) {
      through_tanh(in, inputs * NB, dx);
      T* upper = g;
      g = dx;
      dx = upper;
    } else if (mlp.dx) {
      unpack(dx, NB, count, inputs, call.dx + first * inputs, inputs);
    }
  }
  if (mlp.item.dz) unpack(dz_item, NB, count, ki, call.dz_item + first * ki, ki);
  if (mlp.semantic.dz) unpack(dz_semantic, NB, count, ks, call.dz_semantic + first * ks, ks);
}

}  // namespace
}  // namespace solid::SOLID_ISA
