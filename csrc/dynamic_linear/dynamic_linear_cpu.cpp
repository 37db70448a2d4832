// CPU kernel of dynamic_mlp; the contract is in dynamic_linear.h.
//
// A vector's lanes are sequences. A block of R vectors of sequences is turned into tiles [feature][R
// vectors], and everything is then a product of map values (scalars, broadcast) with tile rows: no tails in
// D, O or k, no sums across lanes, and the map is read in the order in which it lies. R rows times N features
// accumulate in registers.
//
// T = 1 backward uses that the generated weight is linear in z. With g the gradient at the layer's output and
// U_i[k] = sum_o A[i, k, o] m[i, o] g[o] (m: clip mask, 1 for the semantic branch):
//   dz[k] = sum_i x_i U_i[k],  and for the semantic branch  dx_i = sum_k z_k U_i[k] + sum_o a[i, o] g[o],
// so only the item branch is generated again, for its mask. T > 1 generates the block's weights once, applies
// them to all targets, and sums x g^T over the targets before it meets the maps.
//
// Parameter gradients: dA[i, k, o] = sum_b z[b, k] M[b, o], M[b, o] = m[b, i, o] sum_t x[b, t, i] g[b, t, o].
// They are taken chunk by chunk after the chunk's sequences are done; the mask waits in the workspace as
// bits. A row i of one layer and branch belongs to one thread and sums in the order of b.
#include "common/parallel.h"
#include "common/tiles.h"
#include "dynamic_linear/dynamic_linear.h"

#if defined(__AVX512BF16__)

// Nothing here uses bfloat16 arithmetic: this level runs the kernel of the one below.
namespace solid::SOLID_ISA {

Status dynamic_forward(const DynamicMlp& mlp) { return avx512::dynamic_forward(mlp); }
Status dynamic_backward(const DynamicMlp& mlp) { return avx512::dynamic_backward(mlp); }
int64_t dynamic_workspace(const DynamicMlp& mlp, bool backward) {
  return avx512::dynamic_workspace(mlp, backward);
}

}  // namespace solid::SOLID_ISA

#else

namespace solid::SOLID_ISA {
namespace {

// ---- Sizes
// -----------------------------------------------------------------------------------------------------

template <class T>
struct Branch {
  bool present, clipped;  // clipped: bounded by delta, so the backward needs its mask
  int64_t codes;
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
    Branch<T> out{b.present, bounded, b.codes, nullptr, nullptr};
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

// ---- Weights
// ------------------------------------------------------------------------------------------------------

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

// Generated weights of row i, outputs o .. o + N - 1, of one branch; added to acc if `add`.
template <int N, int R, class T>
SOLID_INLINE void generate(const Branch<T>& branch, int64_t outputs, int64_t i, int64_t o, const T* z,
                           bool add, Vector<T> (&acc)[N][R]) {
  const T* offset = branch.offset + i * outputs + o;
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < R; ++r) acc[n][r] = add ? acc[n][r] + offset[n] : splat(offset[n]);
  }
  contract<N, R>(branch.map + i * branch.codes * outputs + o, outputs, 1, branch.codes, z, acc);
}

// W[i, o .. o + N - 1], both branches.
template <int N, int R, class T>
SOLID_INLINE void generate_clipped(const Layer<T>& layer, int64_t i, int64_t o, const T* z_item,
                                   const T* z_semantic, T delta, Vector<T> (&acc)[N][R]) {
  if (layer.item.present) {
    generate<N, R>(layer.item, layer.outputs, i, o, z_item, false, acc);
    const Vector<T> bound = splat(delta);
    for (int n = 0; n < N; ++n) {
      for (int r = 0; r < R; ++r) acc[n][r] = clip(acc[n][r], bound);
    }
    if (layer.semantic.present) generate<N, R>(layer.semantic, layer.outputs, i, o, z_semantic, true, acc);
  } else {
    generate<N, R>(layer.semantic, layer.outputs, i, o, z_semantic, false, acc);
  }
}

// ---- One call
// ----------------------------------------------------------------------------------------------------

template <class T>
constexpr int kBlockVectors = sizeof(T) == 4 ? 2 : 1;  // R of a full block, T = 1; float64 is for checking
constexpr int64_t kTileBytes = 128;  // of one feature of a full block at the widest instruction set
constexpr int kTargetRun = 4;        // targets applied at a time, T > 1
constexpr int64_t kFewSequences =
    6;  // B = 6 one by one: 35 us, as a block of 16 lanes: 55 us (D = 32, P = 2)
constexpr int64_t kManyTargets = 64;  // T = 1000 one by one: 71 us a sequence, in blocks: 109 us
constexpr int64_t kMapRows = 64;      // sequences whose M is expanded at a time: 64 x 32 floats stay in L1

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

  void pack_codes(int64_t first, int64_t count, int64_t lanes, T* item, T* semantic) const {
    const int64_t ki = mlp.item.codes, ks = mlp.semantic.codes;
    if (mlp.item.present) pack(z_item + first * ki, ki, count, ki, lanes, item);
    if (mlp.semantic.present) pack(z_semantic + first * ks, ks, count, ks, lanes, semantic);
  }
};

int64_t widest(const DynamicMlp& mlp) {
  int64_t m = 0;
  for (int64_t l = 0; l <= mlp.layers; ++l) m = mlp.sizes[l] > m ? mlp.sizes[l] : m;
  return m;
}

// ---- Forward, T = 1
// ------------------------------------------------------------------------------------------------

template <int R, class T>
void forward_block(const Call<T>& call, int64_t first, int64_t count, T* scratch) {
  constexpr int NB = R * kLanes<T>;
  constexpr int N = kAccumulators / R;
  const DynamicMlp& mlp = call.mlp;
  const int64_t width = widest(mlp) * NB;
  T* z_item = scratch;
  T* z_semantic = z_item + mlp.item.codes * NB;
  T* in = z_semantic + mlp.semantic.codes * NB;
  T* out = in + width;
  call.pack_codes(first, count, NB, z_item, z_semantic);
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

// ---- Forward, one by one: lanes are outputs
// ----------------------------------------------------------------------------

// w[i .. i + N - 1][o ..] of one branch, V vectors of outputs; z [k] is one sequence's.
template <int N, int V, class T>
SOLID_INLINE void generate_rows(const Branch<T>& branch, int64_t outputs, int64_t i, int64_t o, const T* z,
                                Vector<T> (&acc)[N][V]) {
  constexpr int L = kLanes<T>;
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) acc[n][v] = load(branch.offset + (i + n) * outputs + o + v * L);
  }
  const T* map = branch.map + i * branch.codes * outputs + o;
  for (int64_t k = 0; k < branch.codes; ++k) {
    for (int n = 0; n < N; ++n) {
      for (int v = 0; v < V; ++v) {
        acc[n][v] += z[k] * load(map + (n * branch.codes + k) * outputs + v * L);
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
  const T* z_item = row(call.z_item, mlp.item.codes);
  const T* z_semantic = row(call.z_semantic, mlp.semantic.codes);
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

// ---- Forward, T > 1
// ------------------------------------------------------------------------------------------------

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
  T* z_semantic = z_item + mlp.item.codes * L;
  T* in_tile = z_semantic + mlp.semantic.codes * L;
  T* out_tile = in_tile + kTargetRun * m * L;
  T* w = out_tile + kTargetRun * m * L;
  call.pack_codes(first, count, L, z_item, z_semantic);
  for (int64_t l = 0; l < mlp.layers; ++l) {
    const Layer<T> layer = layer_of<T>(mlp, l);
    generate_all(layer, z_item, z_semantic, call.delta, w);
    apply_all(layer, targets, call.hidden(l) + first * targets * layer.inputs, count, w, in_tile, out_tile,
              (l + 1 == mlp.layers ? call.y : call.hidden(l + 1)) + first * targets * layer.outputs);
  }
}

int64_t scratch_forward(const DynamicMlp& mlp) {
  const int64_t codes = mlp.item.codes + mlp.semantic.codes, m = widest(mlp);
  const int64_t one = (2 * m + (m + 1) * m) * int64_t(sizeof(double));
  const int64_t block =
      mlp.targets == 1 ? (codes + 2 * m) * kTileBytes : (codes + 2 * kTargetRun * m + (m + 1) * m) * 64;
  return one > block ? one : block;
}

template <class T>
Status forward(const DynamicMlp& mlp) {
  constexpr int L = kLanes<T>;
  const Call<T> call(mlp);
  const int64_t scratch_bytes = scratch_forward(mlp);
  if (one_by_one<T>(mlp)) {
    for_each_worker(mlp.batch, mlp.threads, [&](int64_t worker, int64_t b) {
      forward_one(call, b, reinterpret_cast<T*>(static_cast<char*>(mlp.workspace) + worker * scratch_bytes));
    });
    return Status::kOk;
  }
  const int64_t block = mlp.targets == 1 ? kBlockVectors<T> * L : L;
  const int64_t blocks = (mlp.batch + block - 1) / block;
  for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t b) {
    T* scratch = reinterpret_cast<T*>(static_cast<char*>(mlp.workspace) + worker * scratch_bytes);
    const int64_t first = b * block, count = least(block, mlp.batch - first);
    if (mlp.targets != 1) {
      forward_block_targets(call, first, count, scratch);
    } else if (count > L) {
      forward_block<kBlockVectors<T> >(call, first, count, scratch);
    } else {
      forward_block<1>(call, first, count, scratch);
    }
  });
  return Status::kOk;
}

// ---- Backward: the chunk's workspace
// -------------------------------------------------------------------------------

constexpr int64_t kChunkStep = 32;  // a multiple of every block

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Sequences per chunk, from B alone: few enough that the workspace stays far below B D O values, enough that
// a chunk occupies many threads.
int64_t chunk_of(const DynamicMlp& mlp) {
  const bool single = mlp.targets == 1;
  const int64_t aim = round_up(mlp.batch / (single ? 8 : 32), kChunkStep);
  const int64_t low = single ? 128 : 32, high = single ? 1024 : 128;
  const int64_t chunk = aim < low ? low : aim > high ? high : aim;
  return least(chunk, round_up(mlp.batch, kChunkStep));
}

// Widths in elements, padded for the widest instruction set so that the size does not depend on it.
template <class T>
int64_t padded(int64_t outputs) {
  return round_up(outputs, 64 / int64_t(sizeof(T)));
}
template <class T>
int64_t mask_words(int64_t outputs) {
  return (outputs + 8 * int64_t(sizeof(T)) - 1) / (8 * int64_t(sizeof(T)));
}

template <class T>
struct Chunk {
  int64_t size;      // C, capacity in sequences
  int64_t elements;  // of the whole workspace
  int64_t scratch;   // elements per worker
  T* scratches;
  T* z_item;  // [C, k] as T, if x is bfloat16
  T* z_semantic;
  T* layers;  // per layer (T = 1) or for the layer at hand (T > 1): mask words [D + 1][words][C],
              // then T = 1: g [C, padded O]; T > 1: x g^T [D + 1][C][padded O]
  T* upper;   // T > 1: g of the layer at hand and of the one below, [C, T, m] each
  T* lower;

  Chunk(const DynamicMlp& mlp, void* workspace) : size(chunk_of(mlp)) {
    const int64_t m = widest(mlp), codes = mlp.item.codes + mlp.semantic.codes;
    const bool single = mlp.targets == 1;
    if (single) {
      scratch = (2 * codes + 4 * m) * (kTileBytes / int64_t(sizeof(T)));
    } else {
      scratch = (2 * codes + (3 * kTargetRun + 1) * m + 2 * (m + 1) * m) * (64 / int64_t(sizeof(T)));
    }
    const int64_t map_scratch = size + kMapRows * 2 * (64 / int64_t(sizeof(T)));
    if (scratch < map_scratch) scratch = map_scratch;
    scratches = static_cast<T*>(workspace);
    z_item = scratches + mlp.threads * scratch;
    const bool converted = mlp.type == DynamicType::kBFloat16;
    z_semantic = z_item + (converted ? round_up(size * mlp.item.codes, 16) : 0);
    layers = z_semantic + (converted ? round_up(size * mlp.semantic.codes, 16) : 0);
    int64_t sum = 0, most = 0;
    for (int64_t l = 0; l < mlp.layers; ++l) {
      const int64_t part = layer_elements(mlp, l);
      sum += part;
      most = part > most ? part : most;
    }
    upper = layers + (single ? sum : most);
    lower = upper + (single ? 0 : round_up(size * mlp.targets * m, 16));
    T* const end = lower + (single ? 0 : round_up(size * mlp.targets * m, 16));
    elements = end - scratches;
  }

  int64_t mask_elements(const DynamicMlp& mlp, int64_t l) const {
    return mlp.item.present ? (mlp.sizes[l] + 1) * mask_words<T>(mlp.sizes[l + 1]) * size : 0;
  }
  int64_t layer_elements(const DynamicMlp& mlp, int64_t l) const {
    const int64_t rows = mlp.targets == 1 ? 1 : mlp.sizes[l] + 1;
    return mask_elements(mlp, l) + rows * size * padded<T>(mlp.sizes[l + 1]);
  }
  Word<T>* mask(const DynamicMlp& mlp, int64_t l) const {
    T* at = layers;
    for (int64_t j = 0; j < (mlp.targets == 1 ? l : 0); ++j) at += layer_elements(mlp, j);
    return reinterpret_cast<Word<T>*>(at);
  }
  T* rows(const DynamicMlp& mlp, int64_t l) const {
    return reinterpret_cast<T*>(mask(mlp, l)) + mask_elements(mlp, l);
  }
};

// ---- Backward, T = 1: inputs and codes
// -----------------------------------------------------------------------------

// The part of a branch that is not clipped: dz += x U_i, dx += <g, W[i, :]>.
template <int R, class T>
SOLID_APART void unclipped_row(const Branch<T>& branch, int64_t outputs, int64_t i, const T* g,
                               const Vector<T> (&x)[R], const T* z, T* dz, Vector<T> (&dx)[R]) {
  const T* map = branch.map + i * branch.codes * outputs;
  for_runs<kAccumulators / R>(0, branch.codes, [&](auto run, int64_t k) {
    constexpr int n_max = decltype(run)::value;
    Vector<T> u[n_max][R] = {}, sum[R] = {};
    contract<n_max, R>(map + k * outputs, 1, outputs, outputs, g, u, branch.codes * outputs);
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
  const T* map = branch.map + i * branch.codes * outputs;
  for_runs<kAccumulators / R>(0, branch.codes, [&](auto run, int64_t k) {
    constexpr int n_max = decltype(run)::value;
    Vector<T> u[n_max][R] = {};
    contract<n_max, R>(map + k * outputs, 1, outputs, outputs, g, u, branch.codes * outputs);
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
  const int64_t ki = mlp.item.codes, ks = mlp.semantic.codes, width = widest(mlp) * NB;
  T* z_item = scratch;
  T* z_semantic = z_item + ki * NB;
  T* dz_item = z_semantic + ks * NB;
  T* dz_semantic = dz_item + ki * NB;
  T* in = dz_semantic + ks * NB;
  T* masked = in + width;
  T* g = masked + width;
  T* dx = g + width;
  call.pack_codes(first, count, NB, z_item, z_semantic);
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

// ---- Backward, T > 1: one layer of one block
// -----------------------------------------------------------------------

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
  const int64_t ki = mlp.item.codes, ks = mlp.semantic.codes, m = widest(mlp);
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
  call.pack_codes(first, count, L, z_item, z_semantic);
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
  // The codes see the product as T = 1 sees x g^T; they add to what the layers above left.
  const auto codes_in = [&](const Rows<T>& from, int64_t codes, T* dz) {
    zero(dz, codes * L);
    if (from && !top) pack(from + first * codes, codes, count, codes, L, dz);
  };
  codes_in(call.dz_item, ki, dz_item);
  codes_in(call.dz_semantic, ks, dz_semantic);
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

// ---- Backward: maps
// ------------------------------------------------------------------------------------------------

// dmap[n][0 ..] += sum_b z[b][n] m[b][0 ..] for N codes and V vectors of outputs; if not Whole, only `rest`
// columns of them exist.
template <int N, int V, bool Whole, class T>
SOLID_INLINE void add_map(const T* z, int64_t codes, const T* m, int64_t count, int64_t stride, int64_t rest,
                          T* dmap) {
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
      const T value = z[b * codes + n];
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
  int64_t count, outputs, codes, pad;
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
    for_runs<kAccumulators / V>(0, row.codes, [&](auto run, int64_t k) {
      add_map<decltype(run)::value, V, Whole>(row.z + from * row.codes + k, row.codes, scratch, count,
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
  row.codes = branch.codes;
  row.pad = padded<T>(row.outputs);
  row.z = item ? chunk.z_item : chunk.z_semantic;
  if (!call.narrow) row.z = static_cast<const T*>(branch.z) + first * row.codes;
  row.rows = chunk.rows(mlp, l) + (single ? 0 : i * chunk.size * row.pad);
  row.mask_stride = chunk.size;
  row.mask =
      item && layer.item.clipped ? chunk.mask(mlp, l) + i * mask_words<T>(row.outputs) * chunk.size : nullptr;
  T* const dmap = static_cast<T*>(branch.dmaps[l]);
  T* const doffset = static_cast<T*>(branch.doffsets[l]);
  row.dmap = dmap ? dmap + i * row.codes * row.outputs : nullptr;
  row.doffset = doffset ? doffset + i * row.outputs : nullptr;
  if (first == 0) {
    if (row.dmap) zero(row.dmap, row.codes * row.outputs);
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

template <class T>
Status backward(const DynamicMlp& mlp) {
  constexpr int L = kLanes<T>;
  const Call<T> call(mlp);
  const Chunk<T> chunk(mlp, mlp.workspace);
  const bool single = mlp.targets == 1;
  const int64_t block = single ? kBlockVectors<T> * L : L;
  const auto scratch_of = [&](int64_t worker) { return chunk.scratches + worker * chunk.scratch; };
  int64_t first = 0;
  do {
    const int64_t count = least(chunk.size, mlp.batch - first);
    const int64_t blocks = (count + block - 1) / block;
    const auto widen = [&](const Rows<T>& z, int64_t codes, T* to) {
      for (int64_t j = 0; j < count * codes; ++j) to[j] = z.read(first * codes + j);
    };
    if (call.narrow) {
      widen(call.z_item, mlp.item.codes, chunk.z_item);
      widen(call.z_semantic, mlp.semantic.codes, chunk.z_semantic);
    }
    if (single) {
      for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t b) {
        const int64_t slot = b * block, n = least(block, count - slot);
        if (n > L) {
          backward_block<kBlockVectors<T> >(call, chunk, first + slot, slot, n, scratch_of(worker));
        } else {
          backward_block<1>(call, chunk, first + slot, slot, n, scratch_of(worker));
        }
      });
      int64_t rows = 0;
      for (int64_t l = 0; l < mlp.layers; ++l) rows += 2 * (mlp.sizes[l] + 1);
      for_each_worker(rows, mlp.threads, [&](int64_t worker, int64_t row) {
        int64_t l = 0;
        for (; row >= 2 * (mlp.sizes[l] + 1); ++l) row -= 2 * (mlp.sizes[l] + 1);
        map_rows_of_layer(call, chunk, l, row, first, count, scratch_of(worker));
      });
    } else {
      for (int64_t l = mlp.layers - 1; l >= 0; --l) {
        for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t b) {
          const int64_t slot = b * block, n = least(block, count - slot);
          backward_targets(call, chunk, l, first + slot, slot, n, scratch_of(worker));
        });
        for_each_worker(2 * (mlp.sizes[l] + 1), mlp.threads, [&](int64_t worker, int64_t row) {
          map_rows_of_layer(call, chunk, l, row, first, count, scratch_of(worker));
        });
      }
    }
    first += count;
  } while (first < mlp.batch);
  return Status::kOk;
}

}  // namespace

Status dynamic_forward(const DynamicMlp& mlp) {
  return mlp.type == DynamicType::kFloat64 ? forward<double>(mlp) : forward<float>(mlp);
}

Status dynamic_backward(const DynamicMlp& mlp) {
  return mlp.type == DynamicType::kFloat64 ? backward<double>(mlp) : backward<float>(mlp);
}

int64_t dynamic_workspace(const DynamicMlp& mlp, bool backward) {
  if (!backward) return mlp.threads * scratch_forward(mlp);
  if (mlp.type == DynamicType::kFloat64)
    return Chunk<double>(mlp, nullptr).elements * int64_t(sizeof(double));
  return Chunk<float>(mlp, nullptr).elements * int64_t(sizeof(float));
}

}  // namespace solid::SOLID_ISA

#endif
