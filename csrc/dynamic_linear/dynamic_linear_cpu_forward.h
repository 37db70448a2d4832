// Forward with one target: a block of sequences as lanes; or one sequence after the other, with outputs as
// lanes.
#pragma once

#include "dynamic_linear/dynamic_linear_cpu_call.h"

namespace solid::SOLID_ISA {
namespace {

// B = 6 one by one: 35 us, as a block of 16 lanes: 55 us (D = 32, P = 2).
constexpr int64_t kFewSequences = 6;
// T = 1000 one by one: 71 us a sequence, in blocks: 109 us.
constexpr int64_t kManyTargets = 64;

template <int R, class T>
void forward_block(const Call<T>& call, int64_t first, int64_t count, T* scratch) {
  constexpr int NB = R * kLanes<T>;
  constexpr int N = kAccumulators / R;
  const DynamicMlp& mlp = call.mlp;
  const int64_t width = widest(mlp) * NB;
  T* z_item = scratch;
  T* z_semantic = z_item + mlp.item.code_dim * NB;
  T* in = z_semantic + mlp.semantic.code_dim * NB;
  T* out = in + width;
  call.pack_conditions(first, count, NB, z_item, z_semantic);
  pack(call.x + first * mlp.sizes[0], mlp.sizes[0], count, mlp.sizes[0], NB, in);
  for (int64_t l = 0; l < mlp.layers; ++l) {
    const Layer<T> layer = layer_of<T>(mlp, l);
    for (int64_t i = 0; i <= layer.inputs; ++i) {
      // The bias comes first: it starts the sums that the rows of W add to.
      const int64_t row = i == 0 ? layer.inputs : i - 1;
      Vector<T> x[R];
      for (int r = 0; r < R; ++r) x[r] = i == 0 ? splat(T(1)) : load(in + (row * R + r) * kLanes<T>);
      for_runs<N>(0, layer.outputs, [&](auto run, int64_t o) {
        constexpr int n_max = decltype(run)::value;
        Vector<T> w[n_max][R];
        generate_clipped<n_max, R>(layer, row, o, z_item, z_semantic, call.delta, w);
        for (int n = 0; n < n_max; ++n) {
          for (int r = 0; r < R; ++r) {
            T* y = out + ((o + n) * R + r) * kLanes<T>;
            store(y, i == 0 ? w[n][r] : load(y) + x[r] * w[n][r]);
          }
        }
      });
    }
    if (layer.curved) tanh_tile(out, layer.outputs * NB);
    if (l + 1 == mlp.layers) {
      unpack(out, NB, count, layer.outputs, call.y + first * layer.outputs, layer.outputs);
    } else if (mlp.hidden) {
      unpack(out, NB, count, layer.outputs, call.hidden(l + 1) + first * layer.outputs, layer.outputs);
    }
    T* last = in;
    in = out;
    out = last;
  }
}

// w[i .. i + N - 1][o ..] of one branch, V vectors of outputs; z [k] is one sequence's.
template <int N, int V, class T>
SOLID_INLINE void generate_rows(const Branch<T>& branch, int64_t outputs, int64_t i, int64_t o, const T* z,
                                Vector<T> (&acc)[N][V]) {
  constexpr int L = kLanes<T>;
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) acc[n][v] = load(branch.offset + (i + n) * outputs + o + v * L);
  }
  const T* map = branch.map + i * branch.code_dim * outputs + o;
  for (int64_t k = 0; k < branch.code_dim; ++k) {
    for (int n = 0; n < N; ++n) {
      for (int v = 0; v < V; ++v) {
        acc[n][v] += z[k] * load(map + (n * branch.code_dim + k) * outputs + v * L);
      }
    }
  }
}

template <class T>
void generate_one(const Layer<T>& layer, const T* z_item, const T* z_semantic, T delta, T* w) {
  constexpr int L = kLanes<T>;
  const int64_t outputs = layer.outputs;
  const Vector<T> bound = splat(delta);
  const auto columns = [&](auto vectors, int64_t o) {
    constexpr int V = decltype(vectors)::value;
    for_runs<kAccumulators / 4>(0, layer.inputs + 1, [&](auto run, int64_t i) {
      constexpr int N = decltype(run)::value;
      Vector<T> item[N][V] = {}, semantic[N][V] = {};
      if (layer.item.present) generate_rows(layer.item, outputs, i, o, z_item, item);
      if (layer.semantic.present) generate_rows(layer.semantic, outputs, i, o, z_semantic, semantic);
      for (int n = 0; n < N; ++n) {
        for (int v = 0; v < V; ++v) {
          store(w + (i + n) * outputs + o + v * L, semantic[n][v] + clip(item[n][v], bound));
        }
      }
    });
  };
  int64_t o = 0;
  for (; o + 2 * L <= outputs; o += 2 * L) columns(Width<2>{}, o);
  for (; o < outputs; o += L) columns(Width<1>{}, o);
}

// out[t] = in[t] w + b for NT targets, as they lie in memory.
template <int NT, int V, class T>
SOLID_INLINE void apply_rows(const T* in, int64_t inputs, const T* w, int64_t outputs, bool curved, T* out) {
  constexpr int L = kLanes<T>;
  Vector<T> acc[NT][V];
  for (int t = 0; t < NT; ++t) {
    for (int v = 0; v < V; ++v) acc[t][v] = load(w + inputs * outputs + v * L);
  }
  for (int64_t i = 0; i < inputs; ++i) {
    for (int v = 0; v < V; ++v) {
      const Vector<T> value = load(w + i * outputs + v * L);
      for (int t = 0; t < NT; ++t) acc[t][v] += in[t * inputs + i] * value;
    }
  }
  for (int t = 0; t < NT; ++t) {
    for (int v = 0; v < V; ++v) store(out + t * outputs + v * L, curved ? tanh(acc[t][v]) : acc[t][v]);
  }
}

// One sequence after the other, with outputs as lanes: for fewer sequences than lanes, and for many targets
// each, whose rows are then read as they lie. Needs outputs that fill vectors.
template <class T>
bool one_by_one(const DynamicMlp& mlp) {
  for (int64_t l = 1; l <= mlp.layers; ++l) {
    if (mlp.sizes[l] % kLanes<T> != 0) return false;
  }
  if (mlp.type == DynamicType::kBFloat16 || (mlp.targets != 1 && mlp.layers > 1 && !mlp.hidden)) return false;
  return mlp.batch <= kFewSequences || mlp.targets >= kManyTargets;
}

template <class T>
void forward_one(const Call<T>& call, int64_t b, T* scratch) {
  constexpr int L = kLanes<T>;
  const DynamicMlp& mlp = call.mlp;
  const auto row = [&](const Rows<T>& rows, int64_t size) {
    return reinterpret_cast<T*>((rows + b * size).base);
  };
  const T* z_item = row(call.z_item, mlp.item.code_dim);
  const T* z_semantic = row(call.z_semantic, mlp.semantic.code_dim);
  const int64_t m = widest(mlp);
  T* w = scratch + 2 * m;
  const T* in = row(call.x, mlp.targets * mlp.sizes[0]);
  for (int64_t l = 0; l < mlp.layers; ++l) {
    const Layer<T> layer = layer_of<T>(mlp, l);
    const int64_t inputs = layer.inputs, outputs = layer.outputs;
    generate_one(layer, z_item, z_semantic, call.delta, w);
    T* out = scratch + l % 2 * m;
    if (l + 1 == mlp.layers) {
      out = row(call.y, mlp.targets * outputs);
    } else if (mlp.hidden) {
      out = row(call.hidden(l + 1), mlp.targets * outputs);
    }
    for_runs<kAccumulators / 2>(0, mlp.targets, [&](auto run, int64_t t) {
      constexpr int NT = decltype(run)::value;
      int64_t o = 0;
      for (; o + 2 * L <= outputs; o += 2 * L) {
        apply_rows<NT, 2>(in + t * inputs, inputs, w + o, outputs, layer.curved, out + t * outputs + o);
      }
      for (; o < outputs; o += L) {
        apply_rows<NT, 1>(in + t * inputs, inputs, w + o, outputs, layer.curved, out + t * outputs + o);
      }
    });
    in = out;
  }
}

}  // namespace
}  // namespace solid::SOLID_ISA
