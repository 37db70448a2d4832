// Backward: gradients of maps and offsets, row by row of a map over a chunk of sequences.
#pragma once

#include "dynamic_linear/dynamic_linear_cpu_chunk.h"

namespace solid::SOLID_ISA {
namespace {

// dmap[n][0 ..] += sum_b z[b][n] m[b][0 ..] for N components of z and V vectors of outputs; if not Whole,
// only `rest` columns of them exist.
template <int N, int V, bool Whole, class T>
SOLID_INLINE void add_map(const T* z, int64_t code_dim, const T* m, int64_t count, int64_t stride,
                          int64_t rest, T* dmap) {
  constexpr int L = kLanes<T>;
  Vector<T> acc[N][V];
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) {
      const T* at = dmap + n * stride + v * L;
      acc[n][v] = Whole ? load(at) : load_some(at, rest - v * L);
    }
  }
  for (int64_t b = 0; b < count; ++b) {
    Vector<T> row[V];
    for (int v = 0; v < V; ++v) row[v] = load(m + (b * V + v) * L);
    for (int n = 0; n < N; ++n) {
      const T value = z[b * code_dim + n];
      for (int v = 0; v < V; ++v) acc[n][v] += value * row[v];
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) {
      T* at = dmap + n * stride + v * L;
      Whole ? store(at, acc[n][v]) : store_some(at, acc[n][v], rest - v * L);
    }
  }
}

// One row i of a layer's map, over a chunk of sequences.
template <class T>
struct MapRow {
  int64_t count, outputs, code_dim, pad;
  const T* z;           // [count, k]
  const T* rows;        // [count, pad]: g, or x g^T
  const T* factors;     // [count]: x_i; null: 1
  const Word<T>* mask;  // [words][mask_stride]; null: not clipped
  int64_t mask_stride;
  T* dmap;     // null: not wanted
  T* doffset;  // null: not wanted
};

// V vectors of outputs from o on. M is expanded for kMapRows sequences at a time, its sum is the offset's
// gradient.
template <int V, bool Whole, class T>
void add_columns(const MapRow<T>& row, int64_t o, T* scratch) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kBits = 8 * sizeof(T);
  const int64_t rest = row.outputs - o;
  Mask<T> bits[V];
  const Word<T>* words[V];
  Vector<T> sum[V];
  for (int v = 0; v < V; ++v) {
    const int64_t at = o + v * L;
    for (int lane = 0; lane < L; ++lane) bits[v][lane] = Word<T>(uint64_t(1) << (at % kBits + lane));
    words[v] = row.mask ? row.mask + at / kBits * row.mask_stride : nullptr;
    sum[v] = row.doffset ? load_some(row.doffset + at, rest - v * L) : Vector<T>{};
  }
  for (int64_t from = 0; from < row.count; from += kMapRows) {
    const int64_t count = least(kMapRows, row.count - from);
    for (int64_t b = 0; b < count; ++b) {
      const T factor = row.factors ? row.factors[from + b] : T(1);
      for (int v = 0; v < V; ++v) {
        Vector<T> value = factor * load(row.rows + (from + b) * row.pad + o + v * L);
        if (row.mask) value = (words[v][from + b] & bits[v]) != 0 ? value : Vector<T>{};
        sum[v] += value;
        store(scratch + (b * V + v) * L, value);
      }
    }
    if (!row.dmap) continue;
    for_runs<kAccumulators / V>(0, row.code_dim, [&](auto run, int64_t k) {
      add_map<decltype(run)::value, V, Whole>(row.z + from * row.code_dim + k, row.code_dim, scratch, count,
                                              row.outputs, rest, row.dmap + k * row.outputs + o);
    });
  }
  for (int v = 0; v < V && row.doffset; ++v) store_some(row.doffset + o + v * L, sum[v], rest - v * L);
}

template <class T>
void map_row(const Call<T>& call, const Chunk<T>& chunk, int64_t l, bool item, int64_t i, int64_t first,
             int64_t count, T* scratch) {
  const DynamicMlp& mlp = call.mlp;
  const DynamicBranch& branch = item ? mlp.item : mlp.semantic;
  if (!branch.present || (!branch.dmaps[l] && !branch.doffsets[l])) return;
  const Layer<T> layer = layer_of<T>(mlp, l);
  const bool single = mlp.targets == 1;
  MapRow<T> row;
  row.count = count;
  row.outputs = layer.outputs;
  row.code_dim = branch.code_dim;
  row.pad = padded<T>(row.outputs);
  row.z = item ? chunk.z_item : chunk.z_semantic;
  if (!call.narrow) row.z = static_cast<const T*>(branch.z) + first * row.code_dim;
  row.rows = chunk.rows(mlp, l) + (single ? 0 : i * chunk.size * row.pad);
  row.mask_stride = chunk.size;
  row.mask =
      item && layer.item.clipped ? chunk.mask(mlp, l) + i * mask_words<T>(row.outputs) * chunk.size : nullptr;
  T* const dmap = static_cast<T*>(branch.dmaps[l]);
  T* const doffset = static_cast<T*>(branch.doffsets[l]);
  row.dmap = dmap ? dmap + i * row.code_dim * row.outputs : nullptr;
  row.doffset = doffset ? doffset + i * row.outputs : nullptr;
  if (first == 0) {
    if (row.dmap) zero(row.dmap, row.code_dim * row.outputs);
    if (row.doffset) zero(row.doffset, row.outputs);
  }
  row.factors = nullptr;
  if (single && i < layer.inputs) {
    const Rows<T> x = call.hidden(l) + (first * layer.inputs + i);
    for (int64_t b = 0; b < count; ++b) scratch[b] = x.read(b * layer.inputs);
    row.factors = scratch;
    scratch += chunk.size;
  }
  constexpr int L = kLanes<T>;
  int64_t o = 0;
  for (; o + 2 * L <= row.outputs; o += 2 * L) add_columns<2, true>(row, o, scratch);
  for (; o < row.outputs; o += L) add_columns<1, false>(row, o, scratch);
}

// Row `index` of a layer: those of the item branch first, then those of the semantic branch.
template <class T>
void map_rows_of_layer(const Call<T>& call, const Chunk<T>& chunk, int64_t l, int64_t index, int64_t first,
                       int64_t count, T* scratch) {
  const int64_t rows = call.mlp.sizes[l] + 1;
  map_row(call, chunk, l, index < rows, index % rows, first, count, scratch);
}

}  // namespace
}  // namespace solid::SOLID_ISA
