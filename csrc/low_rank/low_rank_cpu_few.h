// Few sequences, one after the other, with outputs as lanes: every matrix is read as it lies. The rank fills
// vectors.
#pragma once

#include "low_rank/low_rank_cpu_sums.h"

namespace solid::SOLID_ISA {
namespace {

// The sum of each vector's lanes.
template <class T>
SOLID_INLINE Vector<T> sums_of_lanes(Vector<T> (&a)[kLanes<T>]) {
  transpose<T>(a);
  for (int step = kLanes<T> / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) a[i] += a[i + step];
  }
  return a[0];
}

// out[n] = start[n] + <rows[n], v>, the rows `stride` apart.
template <class T>
void multiply_rows(const T* rows, int64_t stride, const T* start, int64_t height, int64_t width, const T* v,
                   T* out) {
  constexpr int L = kLanes<T>;
  for (int64_t n = 0; n < height; n += L) {
    const int64_t some = least(L, height - n);
    Vector<T> acc[L] = {};
    for (int64_t c = 0; c < width; c += L) {
      const Vector<T> value = load_some(v + c, width - c);
      for (int i = 0; i < L; ++i) {
        if (i < some) acc[i] += value * load_some(rows + (n + i) * stride + c, width - c);
      }
    }
    const Vector<T> sums = sums_of_lanes<T>(acc);
    store_some(out + n, start ? load_some(start + n, some) + sums : sums, some);
  }
}

// out[0 .. width - 1] = start + sum of factors[n] rows[n].
template <class T>
void combine_rows(const T* rows, int64_t stride, const T* start, int64_t height, int64_t width,
                  const T* factors, T* out) {
  constexpr int L = kLanes<T>;
  for (int64_t c = 0; c < width; c += L) {
    const int64_t rest = width - c;
    Vector<T> even = start ? load_some(start + c, rest) : Vector<T>{}, odd = {};
    int64_t n = 0;
    for (; n + 2 <= height; n += 2) {
      even += factors[n] * load_some(rows + n * stride + c, rest);
      odd += factors[n + 1] * load_some(rows + (n + 1) * stride + c, rest);
    }
    if (n < height) even += factors[n] * load_some(rows + n * stride + c, rest);
    store_some(out + c, even + odd, rest);
  }
}

// out[n][0 ..] (+)= factors[n] row[0 ..]
template <class T>
void spread_row(bool first, const T* factors, int64_t height, const T* row, int64_t width, T* out) {
  for (int64_t n = 0; n < height; ++n) {
    for (int64_t c = 0; c < width; c += kLanes<T>) {
      T* const at = out + n * width + c;
      const Vector<T> product = factors[n] * load_some(row + c, width - c);
      store_some(at, first ? product : load_some(at, width - c) + product, width - c);
    }
  }
}

template <class T>
void generate_core(const RankCall<T>& call, const RankLayer<T>& layer, const T* z_item, const T* z_semantic,
                   T* core, Word<T>* mask, int64_t mask_stride) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kBits = 8 * sizeof(T);
  const int64_t rank = call.rank;
  const Vector<T> bound = splat(call.delta);
  const auto generated = [&](const Branch<T>& branch, int64_t i, int64_t o, const T* z, auto& acc) {
    constexpr int N = int(sizeof(acc) / sizeof(acc[0]));
    const T* const map = branch.map + i * branch.code_dim * rank + o;
    for (int n = 0; n < N; ++n) acc[n] += load(branch.offset + (i + n) * rank + o);
    for (int64_t k = 0; k < branch.code_dim; ++k) {
      for (int n = 0; n < N; ++n) acc[n] += z[k] * load(map + (n * branch.code_dim + k) * rank);
    }
  };
  for (int64_t i = 0; i <= rank && mask; ++i) {
    for (int64_t word = 0; word < call.kept.words; ++word)
      mask[(i * call.kept.words + word) * mask_stride] = 0;
  }
  for (int64_t o = 0; o < rank; o += L) {
    for_runs<8>(0, rank + 1, [&](auto run, int64_t i) {
      constexpr int N = decltype(run)::value;
      Vector<T> w[N] = {};
      if (layer.item.present) generated(layer.item, i, o, z_item, w);
      if (layer.item.present && layer.item.clipped) {
        for (int n = 0; n < N; ++n) {
          const Mask<T> inside = (w[n] <= bound) & (w[n] >= -bound);
          w[n] = clip(w[n], bound);
          if (!mask) continue;
          uint64_t bits = 0;
          for (int lane = 0; lane < L; ++lane) bits |= uint64_t(inside[lane] & 1) << (o % kBits + lane);
          mask[((i + n) * call.kept.words + o / kBits) * mask_stride] |= Word<T>(bits);
        }
      }
      if (layer.semantic.present) generated(layer.semantic, i, o, z_semantic, w);
      for (int n = 0; n < N; ++n) store(core + (i + n) * rank + o, w[n]);
    });
  }
}

template <class T>
void forward_few(const RankCall<T>& call, int64_t b, T* scratch) {
  const LowRankMlp& mlp = call.mlp;
  const int64_t rank = call.rank, core_size = (rank + 1) * rank;
  T* const leaving = scratch;
  T* const unkept_entered = leaving + rank;
  T* const hidden[2] = {unkept_entered + rank, unkept_entered + rank + call.widest};
  T* const unkept_cores = hidden[1] + call.widest;
  const auto core_of = [&](int64_t l) {
    return mlp.kept ? call.kept.cores(l) + b * core_size : unkept_cores + l * core_size;
  };
  for (int64_t l = 0; l < mlp.layers; ++l) {
    Word<T>* const mask = call.kept.mask(l);
    generate_core(call, call.layer(l), call.z_item + b * mlp.item.code_dim,
                  call.z_semantic + b * mlp.semantic.code_dim, core_of(l), mask ? mask + b : mask,
                  call.kept.mask_stride());
  }
  const int64_t outputs = mlp.sizes[mlp.layers];
  for (int64_t row = b * mlp.targets; row < (b + 1) * mlp.targets; ++row) {
    const T* in = call.x + row * mlp.sizes[0];
    for (int64_t l = 0; l < mlp.layers; ++l) {
      const RankLayer<T> layer = call.layer(l);
      const T* const core = core_of(l);
      T* const entered = mlp.kept ? call.kept.entered(l) + row * rank : unkept_entered;
      const bool last = l + 1 == mlp.layers;
      T* const out = last       ? call.y + row * outputs
                     : mlp.kept ? call.kept.input(l + 1) + row * layer.outputs
                                : hidden[l % 2];
      multiply_rows(layer.enter, layer.inputs, static_cast<const T*>(nullptr), rank, layer.inputs, in,
                    entered);
      combine_rows(core, rank, core + rank * rank, rank, rank, entered, leaving);
      multiply_rows(layer.leave, rank, layer.bias, layer.outputs, rank, leaving, out);
      for (int64_t o = 0; o < layer.outputs && !last; o += kLanes<T>) {
        const int64_t rest = layer.outputs - o;
        store_some(out + o, tanh(load_some(out + o, rest)), rest);
      }
      in = out;
    }
    T* const y = call.y + row * outputs;
    for (int64_t o = 0; o < outputs && call.gated; ++o) y[o] = call.x[row * outputs + o] + call.gate * y[o];
  }
}

// The gradients of one branch for one sequence: z, map and offset of a layer, from the core's gradient.
template <class T>
void backward_branch(const RankCall<T>& call, const Branch<T>& branch, const DynamicBranch& wanted, int64_t l,
                     int64_t b, const T* products, const Word<T>* mask, T* masked) {
  constexpr int L = kLanes<T>;
  constexpr int64_t kBits = 8 * sizeof(T);
  const int64_t rank = call.rank, k = branch.code_dim;
  const T* const z = static_cast<const T*>(wanted.z) + b * k;
  const T* gradient = products;
  if (mask) {
    for (int64_t i = 0; i <= rank; ++i) {
      for (int64_t o = 0; o < rank; o += L) {
        const Word<T> word = mask[(i * call.kept.words + o / kBits) * call.kept.mask_stride()];
        Mask<T> bits;
        for (int lane = 0; lane < L; ++lane) bits[lane] = Word<T>(uint64_t(1) << (o % kBits + lane));
        const Mask<T> words = Mask<T>{} + word;
        store(masked + i * rank + o, (words & bits) != 0 ? load(products + i * rank + o) : Vector<T>{});
      }
    }
    gradient = masked;
  }
  if (T* const doffset = static_cast<T*>(wanted.doffsets[l])) {
    for (int64_t at = 0; at < (rank + 1) * rank; ++at) doffset[at] = (b ? doffset[at] : T(0)) + gradient[at];
  }
  if (T* const dmap = static_cast<T*>(wanted.dmaps[l])) {
    for (int64_t i = 0; i <= rank; ++i)
      spread_row(b == 0, z, k, gradient + i * rank, rank, dmap + i * k * rank);
  }
  if (!wanted.dz) return;
  T* const dz = static_cast<T*>(wanted.dz) + b * k;
  for (int64_t n = 0; n < k; n += L) {
    const int64_t some = least(L, k - n);
    Vector<T> acc[L] = {};
    for (int64_t i = 0; i <= rank; ++i) {
      const T* const map = branch.map + (i * k + n) * rank;
      for (int64_t o = 0; o < rank; o += L) {
        const Vector<T> value = load(gradient + i * rank + o);
        for (int j = 0; j < L; ++j) {
          if (j < some) acc[j] += value * load(map + j * rank + o);
        }
      }
    }
    store_some(dz + n, load_some(dz + n, some) + sums_of_lanes<T>(acc), some);
  }
}

template <class T>
void backward_few(const RankCall<T>& call, T* scratch) {
  constexpr int L = kLanes<T>;
  const LowRankMlp& mlp = call.mlp;
  const int64_t rank = call.rank, core_size = (rank + 1) * rank, outputs = mlp.sizes[mlp.layers];
  T* const leaving = scratch;
  T* const dleaving = leaving + rank;
  T* const dentered = dleaving + rank;
  T* const hidden[2] = {dentered + rank, dentered + rank + call.widest};
  T* const given = hidden[1] + call.widest;
  T* const masked = given + call.widest;
  T* const products = masked + core_size;
  T dgate = 0;
  for (int64_t b = 0; b < mlp.batch; ++b) {
    for (int64_t t = 0; t < mlp.targets; ++t) {
      const int64_t row = b * mlp.targets + t;
      const T* const dy = call.dy + row * outputs;
      const T* upper = dy;
      for (int64_t l = mlp.layers - 1; l >= 0; --l) {
        const RankLayer<T> layer = call.layer(l);
        const T* const core = call.kept.cores(l) + b * core_size;
        const T* const entered = call.kept.entered(l) + row * rank;
        const T* const in = call.input(l) + row * layer.inputs;
        combine_rows(core, rank, core + rank * rank, rank, rank, entered, leaving);
        if (l + 1 == mlp.layers && call.gated) {
          multiply_rows(layer.leave, rank, layer.bias, outputs, rank, leaving, given);
          for (int64_t o = 0; o < outputs; ++o) {
            dgate += dy[o] * given[o];
            given[o] = call.gate * dy[o];
          }
          upper = given;
        }
        if (T* const dbias = static_cast<T*>(mlp.dbiases[l])) {
          for (int64_t o = 0; o < layer.outputs; ++o) dbias[o] = (row ? dbias[o] : T(0)) + upper[o];
        }
        if (mlp.dleaves[l])
          spread_row(row == 0, upper, layer.outputs, static_cast<const T*>(leaving), rank,
                     static_cast<T*>(mlp.dleaves[l]));
        combine_rows(layer.leave, rank, static_cast<const T*>(nullptr), layer.outputs, rank, upper, dleaving);
        T* const product = products + l * core_size;
        spread_row(t == 0, entered, rank, static_cast<const T*>(dleaving), rank, product);
        for (int64_t o = 0; o < rank; ++o)
          product[rank * rank + o] = (t ? product[rank * rank + o] : T(0)) + dleaving[o];
        multiply_rows(core, rank, static_cast<const T*>(nullptr), rank, rank, static_cast<const T*>(dleaving),
                      dentered);
        if (mlp.denters[l])
          spread_row(row == 0, static_cast<const T*>(dentered), rank, in, layer.inputs,
                     static_cast<T*>(mlp.denters[l]));
        if (l == 0 && !mlp.dx) break;
        T* const lower = l == 0 ? call.dx + row * layer.inputs : hidden[l % 2];
        combine_rows(layer.enter, layer.inputs, l == 0 && call.gated ? dy : nullptr, rank, layer.inputs,
                     static_cast<const T*>(dentered), lower);
        for (int64_t i = 0; i < layer.inputs && l > 0; i += L) {
          const int64_t rest = layer.inputs - i;
          const Vector<T> h = load_some(in + i, rest);
          store_some(lower + i, load_some(lower + i, rest) * (1 - h * h), rest);
        }
        upper = lower;
      }
    }
    if (mlp.item.dz) zero(static_cast<T*>(mlp.item.dz) + b * mlp.item.code_dim, mlp.item.code_dim);
    if (mlp.semantic.dz)
      zero(static_cast<T*>(mlp.semantic.dz) + b * mlp.semantic.code_dim, mlp.semantic.code_dim);
    for (int64_t l = mlp.layers - 1; l >= 0; --l) {
      const RankLayer<T> layer = call.layer(l);
      const T* const product = products + l * core_size;
      const Word<T>* const mask = call.kept.mask(l);
      if (mlp.item.present)
        backward_branch(call, layer.item, mlp.item, l, b, product, mask ? mask + b : mask, masked);
      if (mlp.semantic.present)
        backward_branch(call, layer.semantic, mlp.semantic, l, b, product,
                        static_cast<const Word<T>*>(nullptr), masked);
    }
  }
  if (mlp.dgate) *static_cast<T*>(mlp.dgate) = dgate;
}

}  // namespace
}  // namespace solid::SOLID_ISA
