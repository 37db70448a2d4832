// Backward, the sums over a chunk of sequences: gradients of maps, offsets, factors and biases, whose rows
// are divided among threads.
#pragma once

#include "dynamic_linear/dynamic_linear_cpu_maps.h"
#include "low_rank/low_rank_cpu_call.h"

namespace solid::SOLID_ISA {
namespace {

constexpr int64_t kFactorRows = 8;  // rows of a factor's gradient that one thread takes at a time

// out[n][0 ..] += sum of a[row][n] m[row][0 ..] over rows, for N rows of `out` and V vectors, of which only
// `rest` columns exist unless they are whole.
template <int N, int V, bool Whole, class T>
SOLID_INLINE void add_outer(const T* a, int64_t a_stride, const T* m, int64_t m_stride, int64_t count,
                            int64_t stride, int64_t rest, T* out) {
  constexpr int L = kLanes<T>;
  Vector<T> acc[N][V];
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) {
      const T* at = out + n * stride + v * L;
      acc[n][v] = Whole ? load(at) : load_some(at, rest - v * L);
    }
  }
  for (int64_t row = 0; row < count; ++row) {
    Vector<T> value[V];
    for (int v = 0; v < V; ++v) {
      const T* at = m + row * m_stride + v * L;
      value[v] = Whole ? load(at) : load_some(at, rest - v * L);
    }
    for (int n = 0; n < N; ++n) {
      const T factor = a[row * a_stride + n];
      for (int v = 0; v < V; ++v) acc[n][v] += factor * value[v];
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) {
      T* at = out + n * stride + v * L;
      Whole ? store(at, acc[n][v]) : store_some(at, acc[n][v], rest - v * L);
    }
  }
}

// out [height, width] += sum over rows of a[row, 0 .. height - 1] m[row, 0 .. width - 1].
template <class T>
void add_outer_rows(const T* a, int64_t a_stride, const T* m, int64_t m_stride, int64_t count, int64_t height,
                    int64_t width, T* out) {
  constexpr int L = kLanes<T>;
  // Rows at a time that stay in the inner cache while the columns pass.
  for (int64_t from = 0; from < count; from += kMapRows) {
    const int64_t some = least(kMapRows, count - from);
    for_runs<kAccumulators / 2>(0, height, [&](auto run, int64_t n) {
      constexpr int N = decltype(run)::value;
      const T* const factors = a + from * a_stride + n;
      int64_t o = 0;
      for (; o + 2 * L <= width; o += 2 * L) {
        add_outer<N, 2, true>(factors, a_stride, m + from * m_stride + o, m_stride, some, width, width - o,
                              out + n * width + o);
      }
      for (; o < width; o += L) {
        add_outer<N, 1, false>(factors, a_stride, m + from * m_stride + o, m_stride, some, width, width - o,
                               out + n * width + o);
      }
    });
  }
}

// One row of a core's map, of the branch.
template <class T>
void core_map_row(const RankCall<T>& call, const RankChunk<T>& chunk, int64_t l, bool item, int64_t i,
                  int64_t first, int64_t count, T* scratch) {
  const LowRankMlp& mlp = call.mlp;
  const DynamicBranch& branch = item ? mlp.item : mlp.semantic;
  if (!branch.present || (!branch.dmaps[l] && !branch.doffsets[l])) return;
  const int64_t rank = call.rank, k = branch.code_dim;
  MapRow<T> row;
  row.count = count;
  row.outputs = rank;
  row.code_dim = k;
  row.pad = chunk.pad;
  row.z = static_cast<const T*>(branch.z) + first * k;
  row.rows = mlp.targets == 1 ? chunk.dleaving(mlp, l) : chunk.products(mlp, l) + i * chunk.size * chunk.pad;
  row.mask_stride = call.kept.mask_stride();
  const Word<T>* const mask = item ? call.kept.mask(l) : nullptr;
  row.mask = mask ? mask + i * call.kept.words * row.mask_stride + first : nullptr;
  T* const dmap = static_cast<T*>(branch.dmaps[l]);
  T* const doffset = static_cast<T*>(branch.doffsets[l]);
  row.dmap = dmap ? dmap + i * k * rank : nullptr;
  row.doffset = doffset ? doffset + i * rank : nullptr;
  if (first == 0) {
    if (row.dmap) zero(row.dmap, k * rank);
    if (row.doffset) zero(row.doffset, rank);
  }
  row.factors = nullptr;
  if (mlp.targets == 1 && i < rank) {
    const T* const entered = call.kept.entered(l) + first * rank + i;
    for (int64_t b = 0; b < count; ++b) scratch[b] = entered[b * rank];
    row.factors = scratch;
    scratch += round_up(chunk.size, 16);
  }
  constexpr int L = kLanes<T>;
  int64_t o = 0;
  for (; o + 2 * L <= rank; o += 2 * L) add_columns<2, true>(row, o, scratch);
  for (; o < rank; o += L) add_columns<1, false>(row, o, scratch);
}

// Work of a layer that threads divide: rows of both maps, then rows of both factors' gradients.
template <class T>
int64_t units_of_layer(const RankCall<T>& call, int64_t l) {
  return 2 * (call.rank + 1) + (call.mlp.sizes[l + 1] + kFactorRows - 1) / kFactorRows +
         (call.rank + kFactorRows - 1) / kFactorRows;
}

template <class T>
void sum_unit(const RankCall<T>& call, const RankChunk<T>& chunk, int64_t l, int64_t unit, int64_t first,
              int64_t count, T* scratch) {
  const LowRankMlp& mlp = call.mlp;
  const int64_t rank = call.rank, rows = count * mlp.targets;
  const int64_t inputs = mlp.sizes[l], outputs = mlp.sizes[l + 1];
  if (unit < 2 * (rank + 1)) {
    return core_map_row(call, chunk, l, unit <= rank, unit % (rank + 1), first, count, scratch);
  }
  unit -= 2 * (rank + 1);
  const int64_t of_leave = (outputs + kFactorRows - 1) / kFactorRows;
  const bool leave = unit < of_leave;
  const int64_t n = (leave ? unit : unit - of_leave) * kFactorRows;
  if (leave) {
    const int64_t height = least(kFactorRows, outputs - n);
    const T* const upper = chunk.upper(mlp, l) + n;
    if (T* const dbias = static_cast<T*>(mlp.dbiases[l])) {
      for (int64_t o = 0; o < height; ++o) {
        T sum = first == 0 ? T(0) : dbias[n + o];
        for (int64_t row = 0; row < rows; ++row) sum += upper[row * outputs + o];
        dbias[n + o] = sum;
      }
    }
    if (T* const dleave = static_cast<T*>(mlp.dleaves[l])) {
      if (first == 0) zero(dleave + n * rank, height * rank);
      add_outer_rows(upper, outputs, static_cast<const T*>(chunk.leaving(mlp, l)), chunk.pad, rows, height,
                     rank, dleave + n * rank);
    }
  } else if (T* const denter = static_cast<T*>(mlp.denters[l])) {
    const int64_t height = least(kFactorRows, rank - n);
    if (first == 0) zero(denter + n * inputs, height * inputs);
    add_outer_rows(static_cast<const T*>(chunk.dentered(mlp, l)) + n, chunk.pad,
                   call.input(l) + first * mlp.targets * inputs, inputs, rows, height, inputs,
                   denter + n * inputs);
  }
}

}  // namespace
}  // namespace solid::SOLID_ISA
