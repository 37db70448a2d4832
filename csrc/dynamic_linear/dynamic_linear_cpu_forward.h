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

// Row i of both maps, the values of each run of outputs together: [k][N].
template <int N, class T>
void pack_panels(const Layer<T>& layer, int64_t i, T* panels) {
  const auto pack_branch = [&](const Branch<T>& branch) {
    if (!branch.present) return;
    const T* const map = branch.map + i * branch.code_dim * layer.outputs;
    for_runs<N>(0, layer.outputs, [&](auto run, int64_t o) {
      constexpr int n_max = decltype(run)::value;
      for (int64_t k = 0; k < branch.code_dim; ++k) {
        __builtin_memcpy(panels + o * branch.code_dim + k * n_max, map + k * layer.outputs + o,
                         n_max * sizeof(T));
      }
    });
    panels += branch.code_dim * layer.outputs;
  };
  pack_branch(layer.item);
  pack_branch(layer.semantic);
}

// The part of row `row` in a block's outputs; the bias comes first: it starts the sums that the rows of W add
// to.
template <int R, class T>
SOLID_APART void forward_row(const Layer<T>& layer, int64_t row, const T* z_item, const T* z_semantic,
                             T delta, const T* in, const T* panels, T* out) {
  const bool bias = row == layer.inputs;
  Vector<T> x[R];
  for (int r = 0; r < R; ++r) x[r] = bias ? splat(T(1)) : load(in + (row * R + r) * kLanes<T>);
  for_runs<kAccumulators / R>(0, layer.outputs, [&](auto run, int64_t o) {
    constexpr int n_max = decltype(run)::value;
    Vector<T> w[n_max][R];
    generate_clipped<n_max, R>(layer, row, o, z_item, z_semantic, delta, w, panels);
    for (int n = 0; n < n_max; ++n) {
      for (int r = 0; r < R; ++r) {
        T* y = out + ((o + n) * R + r) * kLanes<T>;
        store(y, bias ? w[n][r] : load(y) + x[r] * w[n][r]);
      }
    }
  });
}

// `count` sequences in blocks of R vectors of lanes, for which each row of the maps is read, and packed,
// once.
template <int R, class T>
void forward_blocks(const Call<T>& call, int64_t first, int64_t count, T* scratch) {
  constexpr int NB = R * kLanes<T>;
  const DynamicMlp& mlp = call.mlp;
  const int64_t ki = mlp.item.code_dim, ks = mlp.semantic.code_dim, width = widest(mlp) * NB;
  const int64_t blocks = (count + NB - 1) / NB, tiles = (ki + ks) * NB + 2 * width;
  T* const panels = blocks > 1 ? scratch + blocks * tiles : nullptr;
  const auto z_item = [&](int64_t block) { return scratch + block * tiles; };
  const auto z_semantic = [&](int64_t block) { return z_item(block) + ki * NB; };
  const auto activations = [&](int64_t block, int64_t l) {
    return z_semantic(block) + ks * NB + l % 2 * width;
  };
  const auto sequences = [&](int64_t block) { return least(NB, count - block * NB); };
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t from = first + block * NB, inputs = mlp.sizes[0];
    call.pack_conditions(from, sequences(block), NB, z_item(block), z_semantic(block));
    pack(call.x + from * inputs, inputs, sequences(block), inputs, NB, activations(block, 0));
  }
  for (int64_t l = 0; l < mlp.layers; ++l) {
    const Layer<T> layer = layer_of<T>(mlp, l);
    for (int64_t i = 0; i <= layer.inputs; ++i) {
      const int64_t row = i == 0 ? layer.inputs : i - 1;
      if (panels) pack_panels<kAccumulators / R>(layer, row, panels);
      for (int64_t block = 0; block < blocks; ++block) {
        forward_row<R>(layer, row, z_item(block), z_semantic(block), call.delta, activations(block, l),
                       panels, activations(block, l + 1));
      }
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t from = (first + block * NB) * layer.outputs;
      T* const out = activations(block, l + 1);
      if (layer.curved) tanh_tile(out, layer.outputs * NB);
      if (l + 1 == mlp.layers) {
        unpack(out, NB, sequences(block), layer.outputs, call.y + from, layer.outputs);
      } else if (mlp.hidden) {
        unpack(out, NB, sequences(block), layer.outputs, call.hidden(l + 1) + from, layer.outputs);
      }
    }
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
