// One call of low_rank_mlp on the CPU: its layers, what is kept of it, and the workspace of its backward.
#pragma once

#include "dynamic_linear/dynamic_linear_cpu_call.h"
#include "dynamic_linear/dynamic_linear_cpu_chunk.h"
#include "low_rank/low_rank.h"

namespace solid::SOLID_ISA {
namespace {

constexpr int64_t kPitch = 32;  // sequences of a block: lanes of a tile's row, at every level
constexpr int kRun = 2;         // vectors of a row that are computed at a time

// Up to here sequences are computed one after the other, with outputs as lanes: in a block, most lanes would
// be padding.
constexpr int64_t kFewest = 6;

// Rows (of a sequence and a target) that a chunk of the backward holds at most, and sequences at least.
constexpr int64_t kChunkRows = 1024;

template <class T>
struct RankLayer {
  int64_t inputs, outputs;
  const T *enter, *leave, *bias;
  Branch<T> item, semantic;
};

// What the forward keeps, in elements from `kept` on: per layer h_l [B T, D_l] but for l = 0, h_l U_l
// [B T, r], mask words [r + 1][words][lanes of B] and cores [block][(r + 1) r][lanes of a block].
template <class T>
struct Kept {
  int64_t rank, sequences, rows, lanes, blocks, words;
  const LowRankMlp& mlp;

  explicit Kept(const LowRankMlp& m) : rank(m.rank), sequences(m.batch), rows(m.batch * m.targets), mlp(m) {
    lanes = few() ? 1 : kPitch;
    blocks = (m.batch + lanes - 1) / lanes;
    words = m.item.present && m.delta <= __DBL_MAX__ ? mask_words<T>(rank) : 0;
  }
  // Rows of a core have to fill the widest vectors.
  bool few() const { return mlp.batch <= kFewest && rank % (64 / int64_t(sizeof(T))) == 0; }
  int64_t core() const { return (rank + 1) * rank * lanes; }  // of one block and layer
  int64_t mask_stride() const { return blocks * lanes; }
  int64_t input_elements(int64_t l) const { return l == 0 ? 0 : rows * mlp.sizes[l]; }
  int64_t entered_elements() const { return rows * rank; }
  int64_t mask_elements() const { return (rank + 1) * words * mask_stride(); }
  int64_t layer(int64_t l) const {
    return input_elements(l) + entered_elements() + mask_elements() + blocks * core();
  }
  int64_t elements() const { return at(mlp.layers); }
  int64_t at(int64_t l) const {
    int64_t sum = 0;
    for (int64_t j = 0; j < l; ++j) sum += layer(j);
    return sum;
  }
  T* base(int64_t l) const { return mlp.kept ? static_cast<T*>(mlp.kept) + at(l) : nullptr; }
  T* input(int64_t l) const { return base(l); }  // l > 0
  T* entered(int64_t l) const { return base(l) + input_elements(l); }
  // Words are numbered [i][word][sequence].
  Word<T>* mask(int64_t l) const {
    return words && mlp.kept ? reinterpret_cast<Word<T>*>(entered(l) + entered_elements()) : nullptr;
  }
  T* cores(int64_t l) const { return entered(l) + entered_elements() + mask_elements(); }
};

template <class T>
struct RankCall {
  const LowRankMlp& mlp;
  const Kept<T> kept;
  const int64_t rank, widest;
  const T *x, *z_item, *z_semantic, *dy;
  T *y, *dx;
  const T delta;
  const bool gated;
  const T gate;

  explicit RankCall(const LowRankMlp& m)
      : mlp(m),
        kept(m),
        rank(m.rank),
        widest(widest_of(m)),
        x(static_cast<const T*>(m.x)),
        z_item(static_cast<const T*>(m.item.z)),
        z_semantic(static_cast<const T*>(m.semantic.z)),
        dy(static_cast<const T*>(m.dy)),
        y(static_cast<T*>(m.y)),
        dx(static_cast<T*>(m.dx)),
        delta(T(m.delta)),
        gated(m.gate != nullptr),
        gate(m.gate ? *static_cast<const T*>(m.gate) : T(0)) {}

  RankLayer<T> layer(int64_t l) const {
    const auto branch = [&](const DynamicBranch& b, bool bounded) {
      Branch<T> out{b.present, bounded, b.code_dim, nullptr, nullptr};
      if (b.present) {
        out.map = static_cast<const T*>(b.maps[l]);
        out.offset = static_cast<const T*>(b.offsets[l]);
      }
      return out;
    };
    return {mlp.sizes[l],
            mlp.sizes[l + 1],
            static_cast<const T*>(mlp.enters[l]),
            static_cast<const T*>(mlp.leaves[l]),
            static_cast<const T*>(mlp.biases[l]),
            branch(mlp.item, mlp.delta <= __DBL_MAX__),
            branch(mlp.semantic, false)};
  }

  // Rows of h_l: [B T, D_l].
  const T* input(int64_t l) const { return l == 0 ? x : kept.input(l); }

  static int64_t widest_of(const LowRankMlp& m) {
    int64_t most = m.rank;
    for (int64_t l = 0; l <= m.layers; ++l) most = m.sizes[l] > most ? m.sizes[l] : most;
    return most;
  }
};

// Sequences per chunk of the backward, from B and T alone: enough of them for many threads, few enough that
// what waits of a chunk for the sums stays in a cache.
int64_t rank_chunk_of(const LowRankMlp& mlp) {
  const int64_t most = round_up(kChunkRows / mlp.targets, kPitch), aim = round_up(mlp.batch / 4, kPitch);
  const int64_t least_of_it = least(most, 8 * kPitch);
  return least(least(aim < least_of_it ? least_of_it : aim, most), round_up(mlp.batch, kPitch));
}

// Workspace of the blocks' backward, in elements: scratch of each worker, then what a chunk's sequences leave
// for the sums over them, per layer and row: dh_{l+1} [O], (h U) S + s, its gradient and that of h U [r]
// each; for T > 1 also the cores' gradients [r + 1][sequences][r].
template <class T>
struct RankChunk {
  int64_t size, rows, pad, scratch, elements;
  T* base;
  T* layers;
  T* gates;  // a number for each block

  RankChunk(const LowRankMlp& mlp, void* workspace) : size(rank_chunk_of(mlp)), rows(size * mlp.targets) {
    const int64_t r = mlp.rank, codes = mlp.item.code_dim + mlp.semantic.code_dim;
    const int64_t m = RankCall<T>::widest_of(mlp);
    pad = padded<T>(r);
    const int64_t tiles = codes + 3 * m + 4 * r + (mlp.layers + 1) * (r + 1) * r;
    const int64_t sums = round_up(size, 16) + kMapRows * 2 * (64 / int64_t(sizeof(T)));
    scratch = tiles * kPitch > sums ? tiles * kPitch : sums;
    base = static_cast<T*>(workspace);
    gates = base + mlp.threads * scratch;
    layers = gates + round_up(size / kPitch, 16);
    elements = layers - base;
    for (int64_t l = 0; l < mlp.layers; ++l) elements += layer(mlp, l);
  }
  int64_t layer(const LowRankMlp& mlp, int64_t l) const {
    const int64_t products = mlp.targets == 1 ? 0 : (mlp.rank + 1) * size * pad;
    return round_up(rows * mlp.sizes[l + 1], 16) + 3 * rows * pad + products;
  }
  T* upper(const LowRankMlp& mlp, int64_t l) const {
    T* at = layers;
    for (int64_t j = 0; j < l; ++j) at += layer(mlp, j);
    return at;
  }
  T* leaving(const LowRankMlp& mlp, int64_t l) const {
    return upper(mlp, l) + round_up(rows * mlp.sizes[l + 1], 16);
  }
  T* dleaving(const LowRankMlp& mlp, int64_t l) const { return leaving(mlp, l) + rows * pad; }
  T* dentered(const LowRankMlp& mlp, int64_t l) const { return dleaving(mlp, l) + rows * pad; }
  T* products(const LowRankMlp& mlp, int64_t l) const { return dentered(mlp, l) + rows * pad; }
};

}  // namespace
}  // namespace solid::SOLID_ISA
