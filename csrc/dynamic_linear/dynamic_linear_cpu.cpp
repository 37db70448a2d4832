// CPU kernel of dynamic_mlp; the contract is in dynamic_linear.h.
//
// A vector's lanes are sequences. A block of R vectors of sequences is turned into tiles [feature][R vectors], and
// everything is then a product of map values (scalars, broadcast) with tile rows: no tails in D, O or k, no sums
// across lanes, and the map is read in the order in which it lies. R rows times N features accumulate in registers.
//
// T = 1 backward uses that the generated weight is linear in z. With g the gradient at the layer's output and
// U_i[k] = sum_o A[i, k, o] m[i, o] g[o] (m: clip mask, 1 for the semantic branch):
//   dz[k] = sum_i x_i U_i[k],  and for the semantic branch  dx_i = sum_k z_k U_i[k] + sum_o a[i, o] g[o],
// so only the item branch is generated again, for its mask. T > 1 generates the block's weights once, applies them
// to all targets, and sums x g^T over the targets before it meets the maps.
//
// Parameter gradients: dA[i, k, o] = sum_b z[b, k] M[b, o], M[b, o] = m[b, i, o] sum_t x[b, t, i] g[b, t, o]. They
// are taken chunk by chunk after the chunk's sequences are done; the mask waits in the workspace as bits. A row i
// of one layer and branch belongs to one thread and sums in the order of b.
#include "dynamic_linear/dynamic_linear.h"

#include "common/parallel.h"
#include "dynamic_linear/vectors.h"

namespace solid::SOLID_ISA {
namespace {

// ---- Sizes -----------------------------------------------------------------------------------------------------

struct BFloat16 {
  uint16_t bits;
};

SOLID_INLINE float read(float v) { return v; }
SOLID_INLINE double read(double v) { return v; }
SOLID_INLINE float read(BFloat16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

SOLID_INLINE void write(float* to, float v) { *to = v; }
SOLID_INLINE void write(double* to, double v) { *to = v; }
SOLID_INLINE void write(BFloat16* to, float v) {
  uint32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  // Round to nearest even; a NaN keeps its upper bits and stays one.
  const uint32_t rounded = bits + 0x7FFF + ((bits >> 16) & 1);
  to->bits = uint16_t((v == v ? rounded : bits | 0x400000) >> 16);
}

template <class S, class T>
struct Types {
  using Storage = S;
  using Compute = T;
};

SOLID_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

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

// ---- Tiles: [feature][sequences of the block] --------------------------------------------------------------------

template <int N>
struct Width {
  static constexpr int value = N;
};

// f(Width<n>, first) over [begin, end) in runs of N, the rest in halves.
template <int N, class F>
SOLID_INLINE void for_runs(int64_t begin, int64_t end, const F& f) {
  for (; begin + N <= end; begin += N) f(Width<N>{}, begin);
  if constexpr (N > 1) {
    if (begin < end) for_runs<N / 2>(begin, end, f);
  }
}

// Rows of `count` sequences (`stride` elements apart) into a tile; lanes without a sequence are zero.
template <int NB, class S, class T>
void pack(const S* rows, int64_t stride, int64_t count, int64_t columns, T* tile) {
  for (int64_t lane = 0; lane < NB; ++lane) {
    for (int64_t c = 0; c < columns; ++c) {
      tile[c * NB + lane] = lane < count ? T(read(rows[lane * stride + c])) : T(0);
    }
  }
}

template <int NB, class S, class T>
void unpack(const T* tile, int64_t count, int64_t columns, S* rows, int64_t stride) {
  for (int64_t lane = 0; lane < count; ++lane) {
    for (int64_t c = 0; c < columns; ++c) write(rows + lane * stride + c, tile[c * NB + lane]);
  }
}

template <class T>
SOLID_INLINE void zero(T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
}

template <class T>
void tanh_tile(T* tile, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store(tile + i, tanh(load(tile + i)));
}

// g <- g (1 - h^2): back through h = tanh.
template <class T>
void through_tanh(const T* h, int64_t count, T* g) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vector<T> value = load(h + i);
    store(g + i, load(g + i) * (1 - value * value));
  }
}

// acc[n] += sum_j s[j * step + n * stride] tile[j]
template <int N, int R, class T>
SOLID_INLINE void contract(const T* s, int64_t step, int64_t stride, int64_t count, const T* tile,
                           Vector<T> (&acc)[N][R]) {
  for (int64_t j = 0; j < count; ++j) {
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
SOLID_INLINE void generate(const Branch<T>& branch, int64_t outputs, int64_t i, int64_t o, const T* z, bool add,
                           Vector<T> (&acc)[N][R]) {
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

// ---- One call ----------------------------------------------------------------------------------------------------

constexpr int kBlockVectors = 2;       // R of a full block, T = 1
constexpr int64_t kTileBytes = 128;    // of one feature of a full block at the widest instruction set
constexpr int kTargetRun = 4;          // targets applied at a time, T > 1
constexpr int64_t kMapRows = 64;       // sequences whose M is expanded at a time: 64 x 32 floats stay in L1

template <class S, class T>
struct Call {
  const DynamicMlp& mlp;
  const S* x;
  const S* z_item;
  const S* z_semantic;
  T delta;

  explicit Call(const DynamicMlp& m)
      : mlp(m),
        x(static_cast<const S*>(m.x)),
        z_item(static_cast<const S*>(m.item.z)),
        z_semantic(static_cast<const S*>(m.semantic.z)),
        delta(T(m.delta)) {}

  // h_{l+1}, l < P - 1.
  T* hidden(int64_t l) const {
    T* at = static_cast<T*>(mlp.hidden);
    for (int64_t j = 0; j < l; ++j) at += mlp.batch * mlp.targets * mlp.sizes[j + 1];
    return at;
  }

  template <int NB>
  void pack_codes(int64_t first, int64_t count, T* item, T* semantic) const {
    const int64_t ki = mlp.item.codes, ks = mlp.semantic.codes;
    if (mlp.item.present) pack<NB>(z_item + first * ki, ki, count, ki, item);
    if (mlp.semantic.present) pack<NB>(z_semantic + first * ks, ks, count, ks, semantic);
  }
};

int64_t widest(const DynamicMlp& mlp) {
  int64_t m = 0;
  for (int64_t l = 0; l <= mlp.layers; ++l) m = mlp.sizes[l] > m ? mlp.sizes[l] : m;
  return m;
}

// Blocks are taken by the threads as they come free; which thread has which changes no result.
template <class Body>
void for_each_worker(int64_t blocks, int threads, const Body& body) {
  int64_t next = 0;
  const int64_t team = least(threads, blocks);
  for_each_block(team, threads, [&](int64_t worker) {
    for (;;) {
      const int64_t block = __atomic_fetch_add(&next, int64_t(1), __ATOMIC_RELAXED);
      if (block >= blocks) return;
      body(worker, block);
    }
  });
}

// ---- Forward, T = 1 ------------------------------------------------------------------------------------------------

template <int R, class S, class T>
void forward_block(const Call<S, T>& call, int64_t first, int64_t count, T* scratch) {
  constexpr int NB = R * kLanes<T>;
  constexpr int N = kAccumulators / R;
  const DynamicMlp& mlp = call.mlp;
  const int64_t width = widest(mlp) * NB;
  T* z_item = scratch;
  T* z_semantic = z_item + mlp.item.codes * NB;
  T* in = z_semantic + mlp.semantic.codes * NB;
  T* out = in + width;
  call.template pack_codes<NB>(first, count, z_item, z_semantic);
  pack<NB>(call.x + first * mlp.sizes[0], mlp.sizes[0], count, mlp.sizes[0], in);
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
      unpack<NB>(out, count, layer.outputs, static_cast<S*>(mlp.y) + first * layer.outputs, layer.outputs);
    } else if (mlp.hidden) {
      unpack<NB>(out, count, layer.outputs, call.hidden(l) + first * layer.outputs, layer.outputs);
    }
    T* last = in;
    in = out;
    out = last;
  }
}

// ---- Forward, T > 1 ------------------------------------------------------------------------------------------------

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

template <class In, class Out, class T>
void apply_all(const Layer<T>& layer, int64_t targets, const In* in, int64_t count, const T* w, T* in_tile,
               T* out_tile, Out* out) {
  constexpr int L = kLanes<T>;
  const int64_t inputs = layer.inputs, outputs = layer.outputs;
  for_runs<kTargetRun>(0, targets, [&](auto run, int64_t t) {
    constexpr int n_max = decltype(run)::value;
    pack<L>(in + t * inputs, targets * inputs, count, n_max * inputs, in_tile);
    apply<n_max>(in_tile, inputs, w, outputs, out_tile);
    if (layer.curved) tanh_tile(out_tile, n_max * outputs * L);
    unpack<L>(out_tile, count, n_max * outputs, out + t * outputs, targets * outputs);
  });
}

template <class S, class T>
void forward_block_targets(const Call<S, T>& call, int64_t first, int64_t count, T* scratch) {
  constexpr int L = kLanes<T>;
  const DynamicMlp& mlp = call.mlp;
  const int64_t m = widest(mlp), targets = mlp.targets;
  T* z_item = scratch;
  T* z_semantic = z_item + mlp.item.codes * L;
  T* in_tile = z_semantic + mlp.semantic.codes * L;
  T* out_tile = in_tile + kTargetRun * m * L;
  T* w = out_tile + kTargetRun * m * L;
  call.template pack_codes<L>(first, count, z_item, z_semantic);
  for (int64_t l = 0; l < mlp.layers; ++l) {
    const Layer<T> layer = layer_of<T>(mlp, l);
    const int64_t from = first * targets * layer.inputs, to = first * targets * layer.outputs;
    generate_all(layer, z_item, z_semantic, call.delta, w);
    const auto into = [&](auto* out) {
      if (l == 0) {
        apply_all(layer, targets, call.x + from, count, w, in_tile, out_tile, out + to);
      } else {
        apply_all(layer, targets, call.hidden(l - 1) + from, count, w, in_tile, out_tile, out + to);
      }
    };
    if (l + 1 == mlp.layers) {
      into(static_cast<S*>(mlp.y));
    } else {
      into(call.hidden(l));
    }
  }
}

template <class S, class T>
int64_t scratch_forward(const DynamicMlp& mlp) {
  const int64_t codes = mlp.item.codes + mlp.semantic.codes, m = widest(mlp);
  if (mlp.targets == 1) return (codes + 2 * m) * kTileBytes;
  return (codes + 2 * kTargetRun * m + (m + 1) * m) * 64;
}

template <class S, class T>
Status forward(const DynamicMlp& mlp) {
  constexpr int L = kLanes<T>;
  const Call<S, T> call(mlp);
  const int64_t scratch_bytes = scratch_forward<S, T>(mlp);
  const int64_t block = mlp.targets == 1 ? kBlockVectors * L : L;
  const int64_t blocks = (mlp.batch + block - 1) / block;
  for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t b) {
    T* scratch = reinterpret_cast<T*>(static_cast<char*>(mlp.workspace) + worker * scratch_bytes);
    const int64_t first = b * block, count = least(block, mlp.batch - first);
    if (mlp.targets > 1) {
      forward_block_targets(call, first, count, scratch);
    } else if (count > L) {
      forward_block<kBlockVectors>(call, first, count, scratch);
    } else {
      forward_block<1>(call, first, count, scratch);
    }
  });
  return Status::kOk;
}

// ---- Backward: the chunk's workspace -------------------------------------------------------------------------------

constexpr int64_t kChunkStep = 32;  // a multiple of every block

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Sequences per chunk, from B alone: few enough that the workspace stays far below B D O values, enough that a
// chunk occupies many threads.
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

template <class S, class T>
struct Chunk {
  int64_t size;       // C, capacity in sequences
  int64_t elements;   // of the whole workspace
  int64_t scratch;    // elements per worker
  T* scratches;
  T* z_item;          // [C, k] as T, if x's type is another
  T* z_semantic;
  T* layers;          // per layer (T = 1) or for the layer at hand (T > 1): mask words [D + 1][words][C],
                      // then T = 1: g [C, padded O]; T > 1: x g^T [D + 1][C][padded O]
  T* upper;           // T > 1: g of the layer at hand and of the one below, [C, T, m] each
  T* lower;

  Chunk(const DynamicMlp& mlp, void* workspace) : size(chunk_of(mlp)) {
    const int64_t m = widest(mlp), codes = mlp.item.codes + mlp.semantic.codes;
    const bool single = mlp.targets == 1;
    if (single) {
      scratch = (2 * codes + 4 * m) * (kTileBytes / int64_t(sizeof(T)));
    } else {
      scratch = (2 * codes + (3 * kTargetRun + 1) * m + 2 * (m + 1) * m) * (64 / int64_t(sizeof(T)));
    }
    const int64_t map_scratch = kMapRows * padded<T>(m);
    if (scratch < map_scratch) scratch = map_scratch;
    scratches = static_cast<T*>(workspace);
    z_item = scratches + mlp.threads * scratch;
    const bool converted = sizeof(S) != sizeof(T);
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

// ---- Backward, T = 1: inputs and codes -----------------------------------------------------------------------------

// The part of a branch that is not clipped: dz += x U_i, dx += <g, W[i, :]>.
template <int R, class T>
SOLID_INLINE void unclipped_row(const Branch<T>& branch, int64_t outputs, int64_t i, const T* g,
                                const Vector<T> (&x)[R], const T* z, T* dz, Vector<T> (&dx)[R]) {
  const T* map = branch.map + i * branch.codes * outputs;
  for_runs<kAccumulators / R>(0, branch.codes, [&](auto run, int64_t k) {
    constexpr int n_max = decltype(run)::value;
    Vector<T> u[n_max][R] = {};
    contract<n_max, R>(map + k * outputs, 1, outputs, outputs, g, u);
    for (int n = 0; n < n_max; ++n) {
      for (int r = 0; r < R; ++r) {
        const int64_t at = ((k + n) * R + r) * kLanes<T>;
        store(dz + at, load(dz + at) + x[r] * u[n][r]);
        dx[r] += load(z + at) * u[n][r];
      }
    }
  });
  const T* offset = branch.offset + i * outputs;
  for (int64_t o = 0; o < outputs; ++o) {
    for (int r = 0; r < R; ++r) dx[r] += offset[o] * load(g + (o * R + r) * kLanes<T>);
  }
}

// Weights of row i of the item branch, N at a time: their mask as bits, masked <- mask ? g : 0, dx += g clip(w).
template <int R, class T>
SOLID_INLINE void clipped_row(const Branch<T>& branch, int64_t outputs, int64_t i, const T* g, const T* z, T delta,
                              Word<T>* words, int64_t words_stride, T* masked, Vector<T> (&dx)[R]) {
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
    for (int r = 0; r < R; ++r) __builtin_memcpy(words + r * kLanes<T>, &bits[r], sizeof bits[r]);
    words += words_stride;
  }
}

// dz += x U_i for an already masked g.
template <int R, class T>
SOLID_INLINE void codes_row(const Branch<T>& branch, int64_t outputs, int64_t i, const T* g,
                            const Vector<T> (&x)[R], T* dz) {
  const T* map = branch.map + i * branch.codes * outputs;
  for_runs<kAccumulators / R>(0, branch.codes, [&](auto run, int64_t k) {
    constexpr int n_max = decltype(run)::value;
    Vector<T> u[n_max][R] = {};
    contract<n_max, R>(map + k * outputs, 1, outputs, outputs, g, u);
    for (int n = 0; n < n_max; ++n) {
      for (int r = 0; r < R; ++r) {
        const int64_t at = ((k + n) * R + r) * kLanes<T>;
        store(dz + at, load(dz + at) + x[r] * u[n][r]);
      }
    }
  });
}

template <int R, class S, class T>
void backward_block(const Call<S, T>& call, const Chunk<S, T>& chunk, int64_t first, int64_t slot, int64_t count,
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
  call.template pack_codes<NB>(first, count, z_item, z_semantic);
  zero(dz_item, (ki + ks) * NB);
  const int64_t last = mlp.sizes[mlp.layers];
  pack<NB>(static_cast<const S*>(mlp.dy) + first * last, last, count, last, g);
  if (mlp.tanh_last) {
    pack<NB>(static_cast<const S*>(mlp.y) + first * last, last, count, last, masked);
    through_tanh(masked, last * NB, g);
  }
  for (int64_t l = mlp.layers - 1; l >= 0; --l) {
    const Layer<T> layer = layer_of<T>(mlp, l);
    const int64_t inputs = layer.inputs, outputs = layer.outputs, pad = padded<T>(outputs);
    const int64_t words = mask_words<T>(outputs);
    if (l == 0) {
      pack<NB>(call.x + first * inputs, inputs, count, inputs, in);
    } else {
      pack<NB>(call.hidden(l - 1) + first * inputs, inputs, count, inputs, in);
    }
    T* rows = chunk.rows(mlp, l) + slot * pad;
    unpack<NB>(g, count, outputs, rows, pad);
    for (int64_t b = 0; b < count; ++b) zero(rows + b * pad + outputs, pad - outputs);
    Word<T>* mask = chunk.mask(mlp, l) + slot;
    for (int64_t i = 0; i <= inputs; ++i) {
      Vector<T> x[R], sum[R] = {};
      for (int r = 0; r < R; ++r) x[r] = i < inputs ? load(in + (i * R + r) * kLanes<T>) : splat(T(1));
      if (layer.item.present && layer.item.clipped) {
        clipped_row<R>(layer.item, outputs, i, g, z_item, call.delta, mask + i * words * chunk.size, chunk.size,
                       masked, sum);
        if (mlp.item.dz) codes_row<R>(layer.item, outputs, i, masked, x, dz_item);
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
      unpack<NB>(dx, count, inputs, static_cast<S*>(mlp.dx) + first * inputs, inputs);
    }
  }
  if (mlp.item.dz) unpack<NB>(dz_item, count, ki, static_cast<S*>(mlp.item.dz) + first * ki, ki);
  if (mlp.semantic.dz) unpack<NB>(dz_semantic, count, ks, static_cast<S*>(mlp.semantic.dz) + first * ks, ks);
}

// ---- Backward, T > 1: one layer of one block -----------------------------------------------------------------------

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

template <class S, class T, class In, class Up, class Down>
void backward_targets(const Call<S, T>& call, const Chunk<S, T>& chunk, int64_t l, const In* in, const Up* dy,
                      const S* y, int64_t first, int64_t slot, int64_t count, Down* dx, T* scratch) {
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
  call.template pack_codes<L>(first, count, z_item, z_semantic);
  if (dx) generate_all(layer, z_item, z_semantic, call.delta, w);
  zero(product, (inputs + 1) * outputs * L);
  for_runs<kTargetRun>(0, targets, [&](auto run, int64_t t) {
    constexpr int n_max = decltype(run)::value;
    pack<L>(in + t * inputs, targets * inputs, count, n_max * inputs, in_tile);
    pack<L>(dy + t * outputs, targets * outputs, count, n_max * outputs, g);
    if (y) {
      pack<L>(y + t * outputs, targets * outputs, count, n_max * outputs, dx_tile);
      through_tanh(dx_tile, n_max * outputs * L, g);
    }
    add_outer<n_max>(in_tile, inputs, g, outputs, product);
    if (dx) {
      apply_transposed<n_max>(g, outputs, w, inputs, dx_tile);
      if (l > 0) through_tanh(in_tile, n_max * inputs * L, dx_tile);
      unpack<L>(dx_tile, count, n_max * inputs, dx + t * inputs, targets * inputs);
    }
  });
  // The codes see the product as T = 1 sees x g^T; they add to what the layers above left.
  const auto codes_in = [&](const DynamicBranch& branch, T* dz) {
    zero(dz, branch.codes * L);
    if (branch.dz && l + 1 < mlp.layers) {
      pack<L>(static_cast<const S*>(branch.dz) + first * branch.codes, branch.codes, count, branch.codes, dz);
    }
  };
  const auto codes_out = [&](const DynamicBranch& branch, const T* dz) {
    if (branch.dz) {
      unpack<L>(dz, count, branch.codes, static_cast<S*>(branch.dz) + first * branch.codes, branch.codes);
    }
  };
  codes_in(mlp.item, dz_item);
  codes_in(mlp.semantic, dz_semantic);
  const int64_t pad = padded<T>(outputs), words = mask_words<T>(outputs);
  Word<T>* mask = chunk.mask(mlp, l) + slot;
  T* rows = chunk.rows(mlp, l) + slot * pad;
  Vector<T> one[1] = {splat(T(1))};
  for (int64_t i = 0; i <= inputs; ++i) {
    const T* row = product + i * outputs * L;
    T* to = rows + i * chunk.size * pad;
    unpack<L>(row, count, outputs, to, pad);
    for (int64_t b = 0; b < count; ++b) zero(to + b * pad + outputs, pad - outputs);
    if (layer.item.present && layer.item.clipped) {
      Vector<T> unused[1] = {};
      clipped_row<1>(layer.item, outputs, i, row, z_item, call.delta, mask + i * words * chunk.size, chunk.size,
                     masked, unused);
      codes_row<1>(layer.item, outputs, i, masked, one, dz_item);
    } else if (layer.item.present) {
      codes_row<1>(layer.item, outputs, i, row, one, dz_item);
    }
    if (layer.semantic.present) codes_row<1>(layer.semantic, outputs, i, row, one, dz_semantic);
  }
  codes_out(mlp.item, dz_item);
  codes_out(mlp.semantic, dz_semantic);
}

// ---- Backward: maps ------------------------------------------------------------------------------------------------

template <class T>
SOLID_INLINE Vector<T> load_some(const T* from, int64_t count) {
  if (count >= kLanes<T>) return load(from);
  Vector<T> v = {};
  for (int64_t lane = 0; lane < count; ++lane) v[lane] = from[lane];
  return v;
}

template <class T>
SOLID_INLINE void store_some(T* to, Vector<T> v, int64_t count) {
  if (count >= kLanes<T>) return store(to, v);
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = v[lane];
}

// dmap[n][0 ..] += sum_b z[b][n] m[b][0 ..] for N codes and V vectors of outputs, of which `rest` columns exist.
template <int N, int V, class T>
SOLID_INLINE void add_map(const T* z, int64_t codes, const T* m, int64_t pad, int64_t count, int64_t stride,
                          int64_t rest, T* dmap) {
  constexpr int L = kLanes<T>;
  Vector<T> acc[N][V];
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) acc[n][v] = load_some(dmap + n * stride + v * L, rest - v * L);
  }
  for (int64_t b = 0; b < count; ++b) {
    Vector<T> row[V];
    for (int v = 0; v < V; ++v) row[v] = load(m + b * pad + v * L);
    for (int n = 0; n < N; ++n) {
      const T value = z[b * codes + n];
      for (int v = 0; v < V; ++v) acc[n][v] += value * row[v];
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < V; ++v) store_some(dmap + n * stride + v * L, acc[n][v], rest - v * L);
  }
}

// Row i of one layer's map and offset gradient, over a chunk. x: the layer's input, T = 1.
template <class S, class T, class In>
void map_row(const Call<S, T>& call, const Chunk<S, T>& chunk, int64_t l, bool item, int64_t i, const In* x,
             int64_t first, int64_t count, T* scratch) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kBits = 8 * sizeof(T);
  const DynamicMlp& mlp = call.mlp;
  const DynamicBranch& branch = item ? mlp.item : mlp.semantic;
  const Layer<T> layer = layer_of<T>(mlp, l);
  const int64_t inputs = layer.inputs, outputs = layer.outputs, codes = branch.codes;
  const int64_t pad = padded<T>(outputs), words = mask_words<T>(outputs);
  const bool clipped = item && layer.item.clipped;
  T* const map_gradient = static_cast<T*>(branch.dmaps[l]);
  T* const offset_gradient = static_cast<T*>(branch.doffsets[l]);
  if (!map_gradient && !offset_gradient) return;
  T* dmap = map_gradient ? map_gradient + i * codes * outputs : nullptr;
  T* doffset = offset_gradient ? offset_gradient + i * outputs : nullptr;
  if (first == 0) {
    if (dmap) zero(dmap, codes * outputs);
    if (doffset) zero(doffset, outputs);
  }
  const T* z = item ? chunk.z_item : chunk.z_semantic;
  if constexpr (sizeof(S) == sizeof(T)) z = (item ? call.z_item : call.z_semantic) + first * codes;
  const T* rows = chunk.rows(mlp, l) + (mlp.targets == 1 ? 0 : i * chunk.size * pad);
  const Word<T>* mask = chunk.mask(mlp, l) + i * words * chunk.size;
  Mask<T> lane_bits;
  for (int lane = 0; lane < L; ++lane) lane_bits[lane] = Word<T>(uint64_t(1) << lane);
  for (int64_t from = 0; from < count; from += kMapRows) {
    const int64_t n_rows = least(kMapRows, count - from);
    for (int64_t b = 0; b < n_rows; ++b) {
      const int64_t at = from + b;
      const T factor = mlp.targets == 1 && i < inputs ? T(read(x[(first + at) * inputs + i])) : T(1);
      for (int64_t o = 0; o < pad; o += L) {
        Vector<T> value = factor * load(rows + at * pad + o);
        if (clipped) {
          const Word<T> word = mask[(o / kBits) * chunk.size + at];
          value = (word & (lane_bits << (o % kBits))) != 0 ? value : Vector<T>{};
        }
        store(scratch + b * pad + o, value);
      }
    }
    for (int64_t o = 0; doffset && o < outputs; o += L) {
      Vector<T> sum = load_some(doffset + o, outputs - o);
      for (int64_t b = 0; b < n_rows; ++b) sum += load(scratch + b * pad + o);
      store_some(doffset + o, sum, outputs - o);
    }
    if (!dmap) continue;
    for_runs<kAccumulators / 2>(0, codes, [&](auto run, int64_t k) {
      constexpr int n_max = decltype(run)::value;
      const T* codes_at = z + from * codes + k;
      int64_t o = 0;
      for (; o + L < outputs; o += 2 * L) {
        add_map<n_max, 2>(codes_at, codes, scratch + o, pad, n_rows, outputs, outputs - o, dmap + k * outputs + o);
      }
      if (o < outputs) {
        add_map<n_max, 1>(codes_at, codes, scratch + o, pad, n_rows, outputs, outputs - o, dmap + k * outputs + o);
      }
    });
  }
}

template <class S, class T>
void maps_of_layer(const Call<S, T>& call, const Chunk<S, T>& chunk, int64_t l, int64_t row, int64_t first,
                   int64_t count, T* scratch) {
  // Rows of the item branch first, then of the semantic branch.
  const int64_t rows = call.mlp.sizes[l] + 1;
  const bool item = row < rows;
  if (!(item ? call.mlp.item : call.mlp.semantic).present) return;
  if (l == 0) {
    map_row(call, chunk, l, item, row % rows, call.x, first, count, scratch);
  } else {
    map_row(call, chunk, l, item, row % rows, call.hidden(l - 1), first, count, scratch);
  }
}

template <class S, class T>
void backward_targets_layer(const Call<S, T>& call, const Chunk<S, T>& chunk, int64_t l, int64_t first,
                            int64_t slot, int64_t count, T* scratch) {
  const DynamicMlp& mlp = call.mlp;
  const int64_t per_input = mlp.targets * mlp.sizes[l], per_output = mlp.targets * mlp.sizes[l + 1];
  const auto with = [&](const auto* in, auto* dx) {
    if (l + 1 == mlp.layers) {
      const S* y = mlp.tanh_last ? static_cast<const S*>(mlp.y) + first * per_output : nullptr;
      backward_targets(call, chunk, l, in, static_cast<const S*>(mlp.dy) + first * per_output, y, first, slot,
                       count, dx, scratch);
    } else {
      const T* up = ((mlp.layers - l) % 2 ? chunk.upper : chunk.lower) + slot * per_output;
      backward_targets(call, chunk, l, in, up, static_cast<const S*>(nullptr), first, slot, count, dx, scratch);
    }
  };
  if (l == 0) {
    with(call.x + first * per_input, mlp.dx ? static_cast<S*>(mlp.dx) + first * per_input : nullptr);
  } else {
    with(call.hidden(l - 1) + first * per_input,
         ((mlp.layers - l) % 2 ? chunk.lower : chunk.upper) + slot * per_input);
  }
}

template <class S, class T>
Status backward(const DynamicMlp& mlp) {
  constexpr int L = kLanes<T>;
  const Call<S, T> call(mlp);
  const Chunk<S, T> chunk(mlp, mlp.workspace);
  const bool single = mlp.targets == 1;
  const int64_t block = single ? kBlockVectors * L : L;
  const auto scratch_of = [&](int64_t worker) { return chunk.scratches + worker * chunk.scratch; };
  int64_t first = 0;
  do {
    const int64_t count = least(chunk.size, mlp.batch - first);
    const int64_t blocks = (count + block - 1) / block;
    if constexpr (sizeof(S) != sizeof(T)) {
      const auto convert = [&](const DynamicBranch& branch, const S* z, T* to) {
        for (int64_t j = 0; j < count * branch.codes; ++j) to[j] = read(z[first * branch.codes + j]);
      };
      if (mlp.item.present) convert(mlp.item, call.z_item, chunk.z_item);
      if (mlp.semantic.present) convert(mlp.semantic, call.z_semantic, chunk.z_semantic);
    }
    if (single) {
      for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t b) {
        const int64_t slot = b * block, n = least(block, count - slot);
        if (n > L) {
          backward_block<kBlockVectors>(call, chunk, first + slot, slot, n, scratch_of(worker));
        } else {
          backward_block<1>(call, chunk, first + slot, slot, n, scratch_of(worker));
        }
      });
      int64_t rows = 0;
      for (int64_t l = 0; l < mlp.layers; ++l) rows += 2 * (mlp.sizes[l] + 1);
      for_each_worker(rows, mlp.threads, [&](int64_t worker, int64_t row) {
        int64_t l = 0;
        for (; row >= 2 * (mlp.sizes[l] + 1); ++l) row -= 2 * (mlp.sizes[l] + 1);
        maps_of_layer(call, chunk, l, row, first, count, scratch_of(worker));
      });
    } else {
      for (int64_t l = mlp.layers - 1; l >= 0; --l) {
        for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t b) {
          const int64_t slot = b * block, n = least(block, count - slot);
          backward_targets_layer(call, chunk, l, first + slot, slot, n, scratch_of(worker));
        });
        for_each_worker(2 * (mlp.sizes[l] + 1), mlp.threads, [&](int64_t worker, int64_t row) {
          maps_of_layer(call, chunk, l, row, first, count, scratch_of(worker));
        });
      }
    }
    first += count;
  } while (first < mlp.batch);
  return Status::kOk;
}

}  // namespace

Status dynamic_forward(const DynamicMlp& mlp) {
  switch (mlp.type) {
    case DynamicType::kFloat32:
      return forward<float, float>(mlp);
    case DynamicType::kFloat64:
      return forward<double, double>(mlp);
    case DynamicType::kBFloat16:
      return forward<BFloat16, float>(mlp);
  }
  return Status::kBadArgument;
}

Status dynamic_backward(const DynamicMlp& mlp) {
  switch (mlp.type) {
    case DynamicType::kFloat32:
      return backward<float, float>(mlp);
    case DynamicType::kFloat64:
      return backward<double, double>(mlp);
    case DynamicType::kBFloat16:
      return backward<BFloat16, float>(mlp);
  }
  return Status::kBadArgument;
}

int64_t dynamic_workspace(const DynamicMlp& mlp, bool backward) {
  const auto bytes = [&](auto type) {
    using S = typename decltype(type)::Storage;
    using T = typename decltype(type)::Compute;
    if (backward) return Chunk<S, T>(mlp, nullptr).elements * int64_t(sizeof(T));
    return mlp.threads * scratch_forward<S, T>(mlp);
  };
  switch (mlp.type) {
    case DynamicType::kFloat64:
      return bytes(Types<double, double>{});
    case DynamicType::kBFloat16:
      return bytes(Types<BFloat16, float>{});
    default:
      return bytes(Types<float, float>{});
  }
}

}  // namespace solid::SOLID_ISA
