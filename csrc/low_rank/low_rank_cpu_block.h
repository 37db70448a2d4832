// A block of sequences as lanes of tiles [feature][kPitch]: forward, and backward but for the sums over the
// batch.
#pragma once

#include "low_rank/low_rank_cpu_call.h"

namespace solid::SOLID_ISA {
namespace {

// acc[n] += sum_j s[j * step + n * stride] tile[j] for kRun vectors of a tile's rows.
template <int N, class T>
SOLID_INLINE void contract_tile(const T* s, int64_t step, int64_t stride, int64_t count, const T* tile,
                                Vector<T> (&acc)[N][kRun]) {
  for (int64_t j = 0; j < count; ++j) {
    Vector<T> row[kRun];
    for (int r = 0; r < kRun; ++r) row[r] = load(tile + j * kPitch + r * kLanes<T>);
    for (int n = 0; n < N; ++n) {
      const T value = s[j * step + n * stride];
      for (int r = 0; r < kRun; ++r) acc[n][r] += value * row[r];
    }
  }
}

// One by one, in registers: gcc clears `acc[N][kRun] = {}` in memory by `rep stos`, which takes dozens of
// cycles.
template <int N, class V>
SOLID_INLINE void clear(V (&acc)[N][kRun]) {
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < kRun; ++r) acc[n][r] = V{};
  }
}

template <int N, class T>
SOLID_INLINE void load_tile(const T* tile, Vector<T> (&acc)[N][kRun]) {
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < kRun; ++r) acc[n][r] = load(tile + n * kPitch + r * kLanes<T>);
  }
}

template <int N, class T>
SOLID_INLINE void store_tile(const Vector<T> (&acc)[N][kRun], T* tile) {
  for (int n = 0; n < N; ++n) {
    for (int r = 0; r < kRun; ++r) store(tile + n * kPitch + r * kLanes<T>, acc[n][r]);
  }
}

// f(Width<N>, first, lane) over runs of `count` rows of tiles and over the lanes that hold a sequence.
template <class T, class F>
SOLID_INLINE void for_tiles(int64_t count, int64_t lanes, const F& f) {
  for (int64_t lane = 0; lane < lanes; lane += kRun * kLanes<T>) {
    for_runs<kAccumulators / kRun>(0, count, [&](auto run, int64_t first) { f(run, first, lane); });
  }
}

// out[n] = start[n] + sum_j s[j * step + n * stride] in[j]: a product with a shared matrix.
template <class T>
SOLID_APART void map_tile(const T* s, int64_t step, int64_t stride, const T* start, int64_t inputs,
                          int64_t outputs, int64_t lanes, const T* in, T* out) {
  for_tiles<T>(outputs, lanes, [&](auto run, int64_t o, int64_t lane) {
    constexpr int N = decltype(run)::value;
    Vector<T> acc[N][kRun];
    clear(acc);
    for (int n = 0; n < N && start; ++n) {
      for (int r = 0; r < kRun; ++r) acc[n][r] = splat(start[o + n]);
    }
    contract_tile(s + o * stride, step, stride, inputs, in + lane, acc);
    store_tile(acc, out + o * kPitch + lane);
  });
}

// out[n] = start[n] + sum_j core[j * step + n * stride] in[j]: a product with each sequence's own matrix.
template <class T>
SOLID_APART void core_tile(const T* core, int64_t step, int64_t stride, const T* start, int64_t rank,
                           int64_t lanes, const T* in, T* out) {
  for_tiles<T>(rank, lanes, [&](auto run, int64_t o, int64_t lane) {
    constexpr int N = decltype(run)::value;
    Vector<T> acc[N][kRun];
    clear(acc);
    if (start) load_tile(start + o * kPitch + lane, acc);
    for (int64_t j = 0; j < rank; ++j) {
      for (int r = 0; r < kRun; ++r) {
        const Vector<T> value = load(in + j * kPitch + lane + r * kLanes<T>);
        for (int n = 0; n < N; ++n) {
          acc[n][r] += value * load(core + (j * step + (o + n) * stride) * kPitch + lane + r * kLanes<T>);
        }
      }
    }
    store_tile(acc, out + o * kPitch + lane);
  });
}

// The cores [S; s] of a block; mask: where the clip's gradient passes, a word for each row and sequence.
template <class T>
SOLID_APART void generate_cores(const RankCall<T>& call, const RankLayer<T>& layer, int64_t lanes,
                                const T* z_item, const T* z_semantic, T* core, Word<T>* mask,
                                int64_t mask_stride) {
  constexpr int64_t kBits = 8 * sizeof(T);
  const int64_t rank = call.rank;
  const Vector<T> bound = splat(call.delta);
  const auto generate_branch = [&](const Branch<T>& branch, int64_t i, int64_t o, const T* z, auto& acc) {
    constexpr int N = int(sizeof(acc) / sizeof(acc[0]));
    const T* offset = branch.offset + i * rank + o;
    for (int n = 0; n < N; ++n) {
      for (int r = 0; r < kRun; ++r) acc[n][r] += splat(offset[n]);
    }
    contract_tile<N>(branch.map + i * branch.code_dim * rank + o, rank, 1, branch.code_dim, z, acc);
  };
  for (int64_t i = 0; i <= rank; ++i) {
    for (int64_t lane = 0; lane < lanes; lane += kRun * kLanes<T>) {
      for (int64_t begin = 0; begin < rank; begin += kBits) {
        Mask<T> bits[kRun] = {};
        for_runs<kAccumulators / kRun>(begin, least(begin + kBits, rank), [&](auto run, int64_t o) {
          constexpr int N = decltype(run)::value;
          Vector<T> w[N][kRun];
          clear(w);
          if (layer.item.present) generate_branch(layer.item, i, o, z_item + lane, w);
          if (layer.item.present && layer.item.clipped) {
            for (int n = 0; n < N; ++n) {
              const Word<T> bit = Word<T>(uint64_t(1) << (o + n - begin));
              for (int r = 0; r < kRun; ++r) {
                bits[r] |= (w[n][r] <= bound) & (w[n][r] >= -bound) & bit;
                w[n][r] = clip(w[n][r], bound);
              }
            }
          }
          if (layer.semantic.present) generate_branch(layer.semantic, i, o, z_semantic + lane, w);
          store_tile(w, core + (i * rank + o) * kPitch + lane);
        });
        if (!mask) continue;
        Word<T>* const words = mask + (i * call.kept.words + begin / kBits) * mask_stride + lane;
        __builtin_memcpy(words, bits, sizeof bits);
      }
    }
  }
}

// Lanes that are computed of a block of `count` sequences.
template <class T>
int64_t lanes_for(int64_t count) {
  return round_up(count, kRun * kLanes<T>);
}

template <class T>
int64_t forward_scratch(const LowRankMlp& mlp) {
  return (mlp.item.code_dim + mlp.semantic.code_dim + 2 * RankCall<T>::widest_of(mlp) + 2 * mlp.rank +
          mlp.layers * (mlp.rank + 1) * mlp.rank) *
         kPitch;
}

template <class T>
void forward_rank_block(const RankCall<T>& call, int64_t block, T* scratch) {
  const LowRankMlp& mlp = call.mlp;
  const int64_t rank = call.rank, targets = mlp.targets, first = block * kPitch;
  const int64_t count = least(kPitch, mlp.batch - first), lanes = lanes_for<T>(count);
  const int64_t ki = mlp.item.code_dim, ks = mlp.semantic.code_dim;
  T* z_item = scratch;
  T* z_semantic = z_item + ki * kPitch;
  T* in = z_semantic + ks * kPitch;
  T* out = in + call.widest * kPitch;
  T* entered = out + call.widest * kPitch;
  T* leaving = entered + rank * kPitch;
  T* const unkept = leaving + rank * kPitch;
  if (mlp.item.present) pack<T>({call.z_item + first * ki, false}, ki, count, ki, kPitch, z_item);
  if (mlp.semantic.present) pack<T>({call.z_semantic + first * ks, false}, ks, count, ks, kPitch, z_semantic);
  const auto core_of = [&](int64_t l) {
    return mlp.kept ? call.kept.cores(l) + block * call.kept.core() : unkept + l * (rank + 1) * rank * kPitch;
  };
  for (int64_t l = 0; l < mlp.layers; ++l) {
    Word<T>* const mask = call.kept.mask(l);
    generate_cores(call, call.layer(l), lanes, z_item, z_semantic, core_of(l), mask ? mask + first : mask,
                   call.kept.mask_stride());
    // What is kept is a result like y: nothing of it is left as it was found, the lanes of no sequence
    // neither.
    if (!mlp.kept || lanes == kPitch) continue;
    for (int64_t at = 0; at < (rank + 1) * rank; ++at) zero(core_of(l) + at * kPitch + lanes, kPitch - lanes);
    for (int64_t at = 0; at < (rank + 1) * call.kept.words && mask; ++at)
      zero(mask + at * call.kept.mask_stride() + first + lanes, kPitch - lanes);
  }
  for (int64_t t = 0; t < targets; ++t) {
    const int64_t row = first * targets + t;
    // A row of target t in rows of `width` elements, and the way to the next sequence's.
    const auto keep = [&](const T* tile, int64_t width, T* rows) {
      unpack<T>(tile, kPitch, count, width, {rows + row * width, false}, targets * width);
    };
    pack<T>({call.x + row * mlp.sizes[0], false}, targets * mlp.sizes[0], count, mlp.sizes[0], kPitch, in);
    for (int64_t l = 0; l < mlp.layers; ++l) {
      const RankLayer<T> layer = call.layer(l);
      const T* const core = core_of(l);
      if (mlp.kept && l > 0) keep(in, layer.inputs, call.kept.input(l));
      map_tile(layer.enter, 1, layer.inputs, static_cast<const T*>(nullptr), layer.inputs, rank, lanes, in,
               entered);
      if (mlp.kept) keep(entered, rank, call.kept.entered(l));
      core_tile(core, rank, 1, core + rank * rank * kPitch, rank, lanes, entered, leaving);
      map_tile(layer.leave, 1, rank, layer.bias, rank, layer.outputs, lanes, leaving, out);
      for (int64_t o = 0; o < layer.outputs && l + 1 < mlp.layers; ++o) tanh_tile(out + o * kPitch, lanes);
      T* const last = in;
      in = out;
      out = last;
    }
    const int64_t outputs = mlp.sizes[mlp.layers];
    if (call.gated) {
      pack<T>({call.x + row * outputs, false}, targets * outputs, count, outputs, kPitch, out);
      for (int64_t at = 0; at < outputs * kPitch; at += kLanes<T>)
        store(in + at, load(out + at) + call.gate * load(in + at));
    }
    keep(in, outputs, call.y);
  }
}

// dz[k] += sum over i and o of A[i, k, o] times the core's gradient, where the mask lets it pass.
template <class T>
SOLID_APART void codes_of_cores(const Branch<T>& branch, int64_t rank, int64_t lanes, const T* products,
                                const Word<T>* mask, int64_t words, int64_t mask_stride, T* masked, T* dz) {
  constexpr int64_t kBits = 8 * sizeof(T);
  // Rows whose sums are taken at a time, before dz is stored: a tile of them stays in the inner cache.
  const int64_t group = rank < 32 ? 32 / rank : 1;
  for (int64_t i = 0; i <= rank; i += group) {
    const int64_t rows = least(group, rank + 1 - i);
    const T* tile = products + i * rank * kPitch;
    if (mask) {
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t o = 0; o < rank; ++o) {
          const Word<T>* const word = mask + ((i + row) * words + o / kBits) * mask_stride;
          const Word<T> bit = Word<T>(uint64_t(1) << (o % kBits));
          const int64_t at = (row * rank + o) * kPitch;
          for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) {
            Mask<T> passes;
            __builtin_memcpy(&passes, word + lane, sizeof passes);
            store(masked + at + lane, (passes & bit) != 0 ? load(tile + at + lane) : Vector<T>{});
          }
        }
      }
      tile = masked;
    }
    const T* const map = branch.map + i * branch.code_dim * rank;
    for_tiles<T>(branch.code_dim, lanes, [&](auto run, int64_t k, int64_t lane) {
      constexpr int N = decltype(run)::value;
      Vector<T> acc[N][kRun];
      load_tile(dz + k * kPitch + lane, acc);
      for (int64_t row = 0; row < rows; ++row) {
        contract_tile(map + (row * branch.code_dim + k) * rank, 1, rank, rank,
                      tile + row * rank * kPitch + lane, acc);
      }
      store_tile(acc, dz + k * kPitch + lane);
    });
  }
}

// products[i][o] += entered[i] dleaving[o], the last row for s; the first target writes.
template <class T>
SOLID_APART void add_products(bool first, int64_t rank, int64_t lanes, const T* entered, const T* dleaving,
                              T* products) {
  for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) {
    for (int64_t i = 0; i <= rank; ++i) {
      const Vector<T> factor = i < rank ? load(entered + i * kPitch + lane) : splat(T(1));
      for (int64_t o = 0; o < rank; ++o) {
        T* const at = products + (i * rank + o) * kPitch + lane;
        const Vector<T> product = factor * load(dleaving + o * kPitch + lane);
        store(at, first ? product : load(at) + product);
      }
    }
  }
}

template <class T>
void backward_rank_block(const RankCall<T>& call, const RankChunk<T>& chunk, int64_t first, int64_t slot,
                         int64_t count, T* scratch) {
  const LowRankMlp& mlp = call.mlp;
  const int64_t rank = call.rank, targets = mlp.targets, lanes = lanes_for<T>(count);
  const int64_t ki = mlp.item.code_dim, ks = mlp.semantic.code_dim, outputs = mlp.sizes[mlp.layers];
  const int64_t core_size = (rank + 1) * rank * kPitch;
  const T* const nothing = nullptr;
  T* dz_item = scratch;
  T* dz_semantic = dz_item + ki * kPitch;
  T* upper = dz_semantic + ks * kPitch;
  T* lower = upper + call.widest * kPitch;
  T* const other = lower + call.widest * kPitch;
  T* const entered = other + call.widest * kPitch;
  T* const leaving = entered + rank * kPitch;
  T* const dleaving = leaving + rank * kPitch;
  T* const dentered = dleaving + rank * kPitch;
  T* const masked = dentered + rank * kPitch;
  T* const products = masked + core_size;
  const auto core_of = [&](int64_t l) { return call.kept.cores(l) + first / kPitch * call.kept.core(); };
  Vector<T> gates[kPitch / kLanes<T>] = {};
  for (int64_t t = 0; t < targets; ++t) {
    const int64_t row = first * targets + t, slot_row = slot * targets + t;
    const auto read = [&](const T* rows, int64_t width, T* tile) {
      pack<T>({rows + row * width, false}, targets * width, count, width, kPitch, tile);
    };
    const auto leave = [&](const T* tile, int64_t width, T* rows, int64_t pad) {
      T* const to = rows + slot_row * pad;
      unpack<T>(tile, kPitch, count, width, {to, false}, targets * pad);
      for (int64_t b = 0; b < count && width < pad; ++b) zero(to + b * targets * pad + width, pad - width);
    };
    read(call.dy, outputs, upper);
    for (int64_t l = mlp.layers - 1; l >= 0; --l) {
      const RankLayer<T> layer = call.layer(l);
      const T* const core = core_of(l);
      read(call.kept.entered(l), rank, entered);
      core_tile(core, rank, 1, core + rank * rank * kPitch, rank, lanes, entered, leaving);
      if (l + 1 == mlp.layers && call.gated) {
        map_tile(layer.leave, 1, rank, layer.bias, rank, outputs, lanes, leaving, other);
        for (int64_t o = 0; o < outputs; ++o) {
          for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) {
            T* const up = upper + o * kPitch + lane;
            gates[lane / kLanes<T>] += load(up) * load(other + o * kPitch + lane);
            store(up, call.gate * load(up));
          }
        }
      }
      leave(upper, layer.outputs, chunk.upper(mlp, l), layer.outputs);
      leave(leaving, rank, chunk.leaving(mlp, l), chunk.pad);
      map_tile(layer.leave, rank, 1, nothing, layer.outputs, rank, lanes, upper, dleaving);
      leave(dleaving, rank, chunk.dleaving(mlp, l), chunk.pad);
      add_products(t == 0, rank, lanes, entered, dleaving, products + l * core_size);
      core_tile(core, 1, rank, nothing, rank, lanes, dleaving, dentered);
      leave(dentered, rank, chunk.dentered(mlp, l), chunk.pad);
      if (l == 0 && !mlp.dx) break;
      map_tile(layer.enter, layer.inputs, 1, nothing, rank, layer.inputs, lanes, dentered, lower);
      if (l > 0) {
        read(call.kept.input(l), layer.inputs, other);
        for (int64_t i = 0; i < layer.inputs; ++i)
          through_tanh(other + i * kPitch, lanes, lower + i * kPitch);
      }
      T* const above = upper;
      upper = lower;
      lower = above;
    }
    if (!mlp.dx) continue;
    const int64_t inputs = mlp.sizes[0];
    if (call.gated) {
      read(call.dy, inputs, other);
      for (int64_t at = 0; at < inputs * kPitch; at += kLanes<T>)
        store(upper + at, load(upper + at) + load(other + at));
    }
    unpack<T>(upper, kPitch, count, inputs, {call.dx + row * inputs, false}, targets * inputs);
  }
  if (call.gated) {
    T sum = 0;
    for (int64_t lane = 0; lane < count; ++lane) sum += gates[lane / kLanes<T>][lane % kLanes<T>];
    chunk.gates[slot / kPitch] = sum;
  }
  zero(dz_item, (ki + ks) * kPitch);
  for (int64_t l = mlp.layers - 1; l >= 0; --l) {
    const RankLayer<T> layer = call.layer(l);
    const T* const product = products + l * core_size;
    const Word<T>* const mask = call.kept.mask(l);
    if (mlp.item.dz) {
      codes_of_cores(layer.item, rank, lanes, product, mask ? mask + first : mask, call.kept.words,
                     call.kept.mask_stride(), masked, dz_item);
    }
    if (mlp.semantic.dz) {
      codes_of_cores(layer.semantic, rank, lanes, product, static_cast<const Word<T>*>(nullptr), 0, 0, masked,
                     dz_semantic);
    }
    for (int64_t i = 0; i <= rank && targets > 1; ++i) {
      T* const to = chunk.products(mlp, l) + (i * chunk.size + slot) * chunk.pad;
      unpack<T>(product + i * rank * kPitch, kPitch, count, rank, {to, false}, chunk.pad);
      for (int64_t b = 0; b < count; ++b) zero(to + b * chunk.pad + rank, chunk.pad - rank);
    }
  }
  if (mlp.item.dz)
    unpack<T>(dz_item, kPitch, count, ki, {static_cast<T*>(mlp.item.dz) + first * ki, false}, ki);
  if (mlp.semantic.dz) {
    unpack<T>(dz_semantic, kPitch, count, ks, {static_cast<T*>(mlp.semantic.dz) + first * ks, false}, ks);
  }
}

}  // namespace
}  // namespace solid::SOLID_ISA
