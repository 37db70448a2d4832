// Kernel bodies of gru_last_state; gru_cuda.h is the contract.
//
// A warp has `each` sequences from the first position to the last; its lanes are hidden units (inputs, for
// x's gradient), so that a weight is read once for all of them and their states, [units][sequences] in shared
// memory, by broadcast. Weights lie in shared memory as well where they fit. Nothing is shared between warps
// but the weights and, backward, the sums of the parameters' gradients: only there do they wait for each
// other.
//
// Backward, with dh the gradient of the state after a position:
//   dn = dh (1 - z) (1 - n^2),  dz = dh (h - n) z (1 - z),  dr = dn (W_hn h + b_hn) r (1 - r):
//   dx = [dr dz dn] W_i,  dh <- dh z + [dr dz r.dn] W_h,  dW_i += [dr dz dn]^T x,  dW_h += [dr dz r.dn]^T h.
#pragma once

#include "gru/gru_cuda.h"

namespace solid {

SOLID_DEVICE float gru_tanh(float value) { return tanhf(value); }
SOLID_DEVICE double gru_tanh(double value) { return tanh(value); }
SOLID_DEVICE float gru_sigmoid(float value) { return 1.f / (1.f + expf(-value)); }
SOLID_DEVICE double gru_sigmoid(double value) { return 1. / (1. + exp(-value)); }

// T: what it computes in. each: sequences of a warp. weights_shared: they fit into shared memory.
template <class T, int each_, bool weights_shared>
struct GruShape {
  static constexpr int kEach = each_, kWarps = 4;
  static constexpr int kSequences = kWarps * kEach;
  static constexpr int kRun = each_ * int(sizeof(T)) < 16 ? each_ : 16 / int(sizeof(T));  // read at once
  static constexpr int kPitch =
      kSequences == 4 ? 4 : kSequences + 4;  // 4 modulo 32: lanes with runs do not meet
  static constexpr int kParts = 4;           // dr, dz, dn, r dn

  // Rows of weights lie an odd number apart: lanes are rows going forward and columns going back.
  static SOLID_BOTH int row_pitch(int64_t columns) { return int(columns) | 1; }
  static SOLID_BOTH int64_t weights(const GruCuda& gru) {
    const int64_t all = kGruGates * gru.hidden * (row_pitch(gru.inputs) + row_pitch(gru.hidden));
    return weights_shared ? (all + 3) / 4 * 4 : 0;  // what follows is aligned to 16 bytes
  }
  static SOLID_BOTH int64_t forward_bytes(const GruCuda& gru) {
    return (weights(gru) + (2 * gru.inputs + 2 * gru.hidden) * kPitch) * int64_t(sizeof(T));
  }
  static SOLID_BOTH int64_t backward_bytes(const GruCuda& gru) {
    return (weights(gru) + (gru.inputs + (2 + kParts) * gru.hidden) * kPitch) * int64_t(sizeof(T));
  }
};

template <class T, int each_, bool weights_shared, class Block>
class GruWarp {
 public:
  using Shape = GruShape<T, each_, weights_shared>;
  using Numbers = typename Block::template Shared<T>;
  static constexpr int kEach = each_;

  SOLID_DEVICE GruWarp(Block& block, const GruCuda& gru)
      : block_(block),
        gru_(gru),
        inputs_(int(gru.inputs)),
        hidden_(int(gru.hidden)),
        weights_(block.template shared<T>(int(Shape::weights(gru)))) {
    if constexpr (weights_shared) {
      const auto load = [&](const void* from, int columns, int first) {
        const int pitch = Shape::row_pitch(columns);
        for (int i = block.thread(); i < int(kGruGates) * hidden_ * columns; i += Block::kThreads)
          weights_.set(first + i / columns * pitch + i % columns, load_element<T>(from, gru_.type, i));
      };
      load(gru.weight_input, inputs_, 0);
      load(gru.weight_hidden, hidden_, hidden_first());
      block.sync();
    }
  }

  SOLID_DEVICE T weight_input(int gate, int j, int d) const {
    const int row = gate * hidden_ + j;
    if constexpr (weights_shared) return weights_[row * Shape::row_pitch(inputs_) + d];
    return load_element<T>(gru_.weight_input, gru_.type, int64_t(row) * inputs_ + d);
  }
  SOLID_DEVICE T weight_hidden(int gate, int j, int k) const {
    const int row = gate * hidden_ + j;
    if constexpr (weights_shared) return weights_[hidden_first() + row * Shape::row_pitch(hidden_) + k];
    return load_element<T>(gru_.weight_hidden, gru_.type, int64_t(row) * hidden_ + k);
  }
  SOLID_DEVICE T bias(const void* from, int gate, int j) const {
    return load_element<T>(from, gru_.type, gate * hidden_ + j);
  }

  // The warp's numbers of line i of a tile [lines][kPitch].
  SOLID_DEVICE int place(int i) const { return i * Shape::kPitch + block_.warp() * kEach; }
  SOLID_DEVICE void read(const Numbers& tile, int i, T (&to)[kEach]) const {
#pragma unroll
    for (int m = 0; m < kEach; m += Shape::kRun) {
      const auto run = tile.template pack<Shape::kRun>(place(i) + m);
#pragma unroll
      for (int n = 0; n < Shape::kRun; ++n) to[m + n] = run.at[n];
    }
  }
  SOLID_DEVICE void write(Numbers& tile, int i, const T (&from)[kEach]) const {
#pragma unroll
    for (int m = 0; m < kEach; m += Shape::kRun) {
      Pack<T, Shape::kRun> run;
#pragma unroll
      for (int n = 0; n < Shape::kRun; ++n) run.at[n] = from[m + n];
      tile.template set_pack<Shape::kRun>(place(i) + m, run);
    }
  }

  // Bit m: the warp's sequence m of those from `first` on has a position t that is not masked out.
  SOLID_DEVICE uint32_t active(int64_t first, int64_t t) const {
    const int64_t b = first + block_.warp() * kEach + block_.lane();
    return block_.warp_vote(block_.lane() < kEach && b < gru_.batch && gru_.mask[b * gru_.length + t]);
  }

  // Starts copying x at position t to a tile [D][kPitch], zeros where masked out; commit_copies follows.
  SOLID_DEVICE void load_x(Numbers& tile, int64_t first, int64_t t, uint32_t set) const {
    const bool as_it_is = gru_.type == (sizeof(T) == 8 ? Element::kDouble : Element::kFloat);
    for (int m = 0; m < kEach; ++m) {
      const bool present = (set >> m & 1) != 0;
      const int64_t from =
          present ? (first + block_.warp() * kEach + m) * gru_.x_batch_stride + t * gru_.x_time_stride : 0;
      for (int d = block_.lane(); d < inputs_; d += 32) {
        if (as_it_is)
          block_.template copy_async<1>(tile, place(d) + m,
                                        static_cast<const T*>(gru_.x) + from + (present ? d : 0), present);
        else
          tile.set(place(d) + m, present ? load_element<T>(gru_.x, gru_.type, from + d) : T(0));
      }
    }
  }

  // r and z, and both parts of n before its tanh, of unit j.
  SOLID_DEVICE void gates(int j, const Numbers& x, const Numbers& h, T (&r)[kEach], T (&z)[kEach],
                          T (&n_input)[kEach], T (&n_hidden)[kEach]) const {
    const T br = bias(gru_.bias_input, 0, j) + bias(gru_.bias_hidden, 0, j);
    const T bz = bias(gru_.bias_input, 1, j) + bias(gru_.bias_hidden, 1, j);
    const T bn = bias(gru_.bias_input, 2, j), bm = bias(gru_.bias_hidden, 2, j);
#pragma unroll
    for (int m = 0; m < kEach; ++m) r[m] = br, z[m] = bz, n_input[m] = bn, n_hidden[m] = bm;
    const auto add = [&](T wr, T wz, T wn, const T(&in)[kEach], T(&n)[kEach]) {
#pragma unroll
      for (int m = 0; m < kEach; ++m) {
        r[m] = fused(wr, in[m], r[m]);
        z[m] = fused(wz, in[m], z[m]);
        n[m] = fused(wn, in[m], n[m]);
      }
    };
    T in[kEach];
#pragma unroll 4
    for (int d = 0; d < inputs_; ++d) {
      read(x, d, in);
      add(weight_input(0, j, d), weight_input(1, j, d), weight_input(2, j, d), in, n_input);
    }
#pragma unroll 4
    for (int k = 0; k < hidden_; ++k) {
      read(h, k, in);
      add(weight_hidden(0, j, k), weight_hidden(1, j, k), weight_hidden(2, j, k), in, n_hidden);
    }
#pragma unroll
    for (int m = 0; m < kEach; ++m) r[m] = gru_sigmoid(r[m]), z[m] = gru_sigmoid(z[m]);
  }

 private:
  SOLID_DEVICE int hidden_first() const { return int(kGruGates) * hidden_ * Shape::row_pitch(inputs_); }

  Block& block_;
  const GruCuda& gru_;
  const int inputs_, hidden_;
  Numbers weights_;
};

template <class T, int each, bool weights_shared>
struct GruForward {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 3;
  using Args = GruCuda;
  using Shape = GruShape<T, each, weights_shared>;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& gru) {
    const GruWarp<T, each, weights_shared, Block> warp(block, gru);
    const int inputs = int(gru.inputs), hidden = int(gru.hidden), lane = block.lane();
    const int64_t first = block.index() * Shape::kSequences;
    // x of this position and the next, the state before and after.
    auto xs = block.template shared<T>(2 * inputs * Shape::kPitch);
    auto h = block.template shared<T>(hidden * Shape::kPitch);
    auto next = block.template shared<T>(hidden * Shape::kPitch);
    T* const states = static_cast<T*>(gru.states);
    const auto x_of = [&](int64_t t) {
      return xs.part(int(t % 2) * inputs * Shape::kPitch, inputs * Shape::kPitch);
    };
    for (int j = lane; j < hidden; j += 32) {
      const T zeros[each] = {};
      warp.write(h, j, zeros);
    }
    uint32_t set = 0;
    if (gru.length > 0) {
      auto x = x_of(0);
      set = warp.active(first, 0);
      warp.load_x(x, first, 0, set);
      block.commit_copies();
    }
    for (int64_t t = 0; t < gru.length; ++t) {
      block.template wait_copies<0>();
      block.sync_warp();
      const auto x = x_of(t);
      const uint32_t now = set;
      if (t + 1 < gru.length) {
        auto ahead = x_of(t + 1);
        set = warp.active(first, t + 1);
        warp.load_x(ahead, first, t + 1, set);
        block.commit_copies();
      }
      for (int j = lane; j < hidden; j += 32) {
        T r[each], z[each], n_input[each], n_hidden[each], before[each];
        warp.gates(j, x, h, r, z, n_input, n_hidden);
        warp.read(h, j, before);
#pragma unroll
        for (int m = 0; m < each; ++m) {
          const bool is_set = (now >> m & 1) != 0;
          const int64_t b = first + block.warp() * each + m;
          if (states != nullptr && b < gru.batch)
            states[(t * gru.batch + b) * hidden + j] = is_set ? before[m] : T(0);
          const T n = gru_tanh(fused(r[m], n_hidden[m], n_input[m]));
          if (is_set) before[m] = fused(z[m], before[m] - n, n);
        }
        warp.write(next, j, before);
      }
      const auto last = h;
      h = next;
      next = last;
    }
    block.sync_warp();
    for (int j = lane; j < hidden; j += 32) {
      T state[each];
      warp.read(h, j, state);
#pragma unroll
      for (int m = 0; m < each; ++m) {
        const int64_t b = first + block.warp() * each + m;
        if (b < gru.batch) store_element(gru.h, gru.type, b * hidden + j, state[m]);
      }
    }
  }
};

template <class T, int each, bool weights_shared>
struct GruBackward {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 3;
  using Args = GruCuda;
  using Shape = GruShape<T, each, weights_shared>;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& gru) {
    const GruWarp<T, each, weights_shared, Block> warp(block, gru);
    const int inputs = int(gru.inputs), hidden = int(gru.hidden), lane = block.lane();
    auto x = block.template shared<T>(inputs * Shape::kPitch);
    auto h = block.template shared<T>(hidden * Shape::kPitch);
    auto dh = block.template shared<T>(hidden * Shape::kPitch);
    auto parts = block.template shared<T>(Shape::kParts * hidden * Shape::kPitch);
    T* const sums = static_cast<T*>(gru.workspace) + block.index() * gru_parameters(inputs, hidden);
    for (int64_t i = block.thread(); i < gru_parameters(inputs, hidden); i += kThreads) sums[i] = 0;
    block.sync();
    const int64_t tiles = (gru.batch + Shape::kSequences - 1) / Shape::kSequences;
    for (int64_t tile = block.index(); tile < tiles; tile += block.blocks()) {
      const int64_t first = tile * Shape::kSequences, own = first + block.warp() * each;
      for (int j = lane; j < hidden; j += 32) {
        T up[each];
#pragma unroll
        for (int m = 0; m < each; ++m)
          up[m] = own + m < gru.batch ? load_element<T>(gru.dh, gru.type, (own + m) * hidden + j) : T(0);
        warp.write(dh, j, up);
      }
      for (int64_t t = gru.length - 1; t >= 0; --t) {
        const uint32_t set = warp.active(first, t);
        warp.load_x(x, first, t, set);
        block.commit_copies();
        for (int j = lane; j < hidden; j += 32) {
          T before[each];
#pragma unroll
          for (int m = 0; m < each; ++m)
            before[m] = (set >> m & 1) != 0
                            ? static_cast<const T*>(gru.states)[(t * gru.batch + own + m) * hidden + j]
                            : T(0);
          warp.write(h, j, before);
        }
        block.template wait_copies<0>();
        block.sync_warp();
        gates_back(block, warp, set, hidden, x, h, dh, parts);
        block.sync_warp();
        back_to_inputs(block, warp, gru, set, own, t, parts);
        back_to_state(block, warp, hidden, parts, dh);
        block.sync();
        T* to = sums;
        add_outer(block, kGruGates * hidden, inputs, hidden, 2, parts, x, to);
        to += kGruGates * hidden * inputs;
        add_outer(block, kGruGates * hidden, hidden, hidden, 3, parts, h, to);
        to += kGruGates * hidden * hidden;
        add_biases(block, hidden, parts, to);
        block.sync();
      }
    }
  }

 private:
  // parts <- dr, dz, dn, r dn;  dh <- dh z. Where the mask is False: zeros, and dh as it is.
  template <class Block, class Warp, class Numbers>
  static SOLID_DEVICE void gates_back(Block& block, const Warp& warp, uint32_t set, int hidden,
                                      const Numbers& x, const Numbers& h, Numbers& dh, Numbers& parts) {
    for (int j = block.lane(); j < hidden; j += 32) {
      T r[each], z[each], n_input[each], n_hidden[each], before[each], up[each], rest[each];
      warp.gates(j, x, h, r, z, n_input, n_hidden);
      warp.read(h, j, before);
      warp.read(dh, j, up);
#pragma unroll
      for (int m = 0; m < each; ++m) {
        const bool is_set = (set >> m & 1) != 0;
        const T n = gru_tanh(fused(r[m], n_hidden[m], n_input[m]));
        const T dn = is_set ? up[m] * (1 - z[m]) * (1 - n * n) : T(0);
        const T dz = is_set ? up[m] * (before[m] - n) * (z[m] * (1 - z[m])) : T(0);
        const T dr = is_set ? dn * n_hidden[m] * (r[m] * (1 - r[m])) : T(0);
        if (is_set) up[m] *= z[m];
        rest[m] = is_set ? dn * r[m] : T(0);
        r[m] = dr, z[m] = dz, n_input[m] = dn;
      }
      warp.write(dh, j, up);
      warp.write(parts, j, r);
      warp.write(parts, hidden + j, z);
      warp.write(parts, 2 * hidden + j, n_input);
      warp.write(parts, 3 * hidden + j, rest);
    }
  }

  template <class Block, class Warp, class Numbers>
  static SOLID_DEVICE void back_to_inputs(Block& block, const Warp& warp, const GruCuda& gru, uint32_t set,
                                          int64_t own, int64_t t, const Numbers& parts) {
    const int inputs = int(gru.inputs), hidden = int(gru.hidden);
    if (gru.dx == nullptr) return;
    for (int d = block.lane(); d < inputs; d += 32) {
      T sum[each] = {}, part[each];
      for (int gate = 0; gate < kGruGates; ++gate) {
#pragma unroll 4
        for (int j = 0; j < hidden; ++j) {
          const T weight = warp.weight_input(gate, j, d);
          warp.read(parts, gate * hidden + j, part);
#pragma unroll
          for (int m = 0; m < each; ++m) sum[m] = fused(part[m], weight, sum[m]);
        }
      }
#pragma unroll
      for (int m = 0; m < each; ++m)
        if (own + m < gru.batch)
          store_element(gru.dx, gru.type, ((own + m) * gru.length + t) * inputs + d,
                        (set >> m & 1) != 0 ? sum[m] : T(0));
    }
  }

  template <class Block, class Warp, class Numbers>
  static SOLID_DEVICE void back_to_state(Block& block, const Warp& warp, int hidden, const Numbers& parts,
                                         Numbers& dh) {
    for (int k = block.lane(); k < hidden; k += 32) {
      T sum[each], part[each];
      warp.read(dh, k, sum);
      for (int gate = 0; gate < kGruGates; ++gate) {
#pragma unroll 4
        for (int j = 0; j < hidden; ++j) {
          const T weight = warp.weight_hidden(gate, j, k);
          warp.read(parts, (gate == 2 ? 3 : gate) * hidden + j, part);
#pragma unroll
          for (int m = 0; m < each; ++m) sum[m] = fused(part[m], weight, sum[m]);
        }
      }
      warp.write(dh, k, sum);
    }
  }

  // to [3H][columns] += parts^T in over the block's sequences in their order; of n the part `last`. Eight
  // lanes take four rows of 32 columns.
  template <class Block, class Numbers>
  static SOLID_DEVICE void add_outer(Block& block, int64_t rows, int columns, int hidden, int last,
                                     const Numbers& parts, const Numbers& in, T* to) {
    constexpr int kRows = 4, kColumns = 4, kLanes = 8, kRun = 16 / int(sizeof(T));
    const int chunks = (columns + kLanes * kColumns - 1) / (kLanes * kColumns);
    const int tasks = int((rows + kRows - 1) / kRows) * chunks;
    for (int task = block.thread() / kLanes; task < tasks; task += kThreads / kLanes) {
      const int row = task / chunks * kRows,
                column = task % chunks * kLanes * kColumns + block.lane() % kLanes;
      int left[kRows], right[kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int at = row + i < rows ? row + i : 0;
        left[i] = (at < 2 * hidden ? at : at + (last - 2) * hidden) * Shape::kPitch;
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
        right[j] = (column + kLanes * j < columns ? column + kLanes * j : 0) * Shape::kPitch;
      T sum[kRows][kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          sum[i][j] = row + i < rows && column + kLanes * j < columns
                          ? to[int64_t(row + i) * columns + column + kLanes * j]
                          : T(0);
      for (int m = 0; m < Shape::kSequences; m += kRun) {
        Pack<T, kRun> a[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) a[i] = parts.template pack<kRun>(left[i] + m);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const auto b = in.template pack<kRun>(right[j] + m);
#pragma unroll
          for (int i = 0; i < kRows; ++i)
#pragma unroll
            for (int n = 0; n < kRun; ++n) sum[i][j] = fused(a[i].at[n], b.at[n], sum[i][j]);
        }
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          if (row + i < rows && column + kLanes * j < columns)
            to[int64_t(row + i) * columns + column + kLanes * j] = sum[i][j];
    }
  }

  // to [2][3H]: of the input's and of the state's bias.
  template <class Block, class Numbers>
  static SOLID_DEVICE void add_biases(Block& block, int hidden, const Numbers& parts, T* to) {
    for (int i = block.thread(); i < Shape::kParts * hidden; i += kThreads) {
      T sum = 0;
      for (int m = 0; m < Shape::kSequences; ++m) sum += parts[i * Shape::kPitch + m];
      const int of_hidden = int(kGruGates) * hidden;
      if (i < of_hidden) to[i] += sum;
      if (i < 2 * hidden) to[of_hidden + i] += sum;
      if (i >= of_hidden) to[of_hidden + i - hidden] += sum;
    }
  }
};

// The second launch: a thread adds a parameter's sums of all blocks, in their order.
template <class T>
struct GruSum {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 4;
  using Args = GruCuda;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& gru) {
    const int64_t parameters = gru_parameters(gru.inputs, gru.hidden), blocks = gru_blocks(gru.batch);
    const int64_t i = block.index() * kThreads + block.thread();
    if (i >= parameters) return;
    T sum = 0;
    for (int64_t b = 0; b < blocks; ++b) sum += static_cast<const T*>(gru.workspace)[b * parameters + i];
    const int64_t rows = kGruGates * gru.hidden;
    int64_t at = i;
    const auto store = [&](void* to, int64_t count) {
      if (to != nullptr && at >= 0 && at < count) store_element(to, gru.type, at, sum);
      at -= count;
    };
    store(gru.dweight_input, rows * gru.inputs);
    store(gru.dweight_hidden, rows * gru.hidden);
    store(gru.dbias_input, rows);
    store(gru.dbias_hidden, rows);
  }
};

template <class T, int each, bool weights_shared, class Launch>
Status run_gru(const Launch& launch, const GruCuda& gru, bool backward) {
  using Shape = GruShape<T, each, weights_shared>;
  if (!backward) {
    return launch.template run<GruForward<T, each, weights_shared>>(
        (gru.batch + Shape::kSequences - 1) / Shape::kSequences, Shape::forward_bytes(gru), gru);
  }
  const Status status = launch.template run<GruBackward<T, each, weights_shared>>(
      gru_blocks(gru.batch), Shape::backward_bytes(gru), gru);
  if (status != Status::kOk) return status;
  const int64_t parameters = gru_parameters(gru.inputs, gru.hidden);
  return launch.template run<GruSum<T>>((parameters + GruSum<T>::kThreads - 1) / GruSum<T>::kThreads, 0, gru);
}

// Eight sequences a warp if their tiles fit, with the weights in shared memory if those fit too; else one.
template <class Launch>
Status plan_gru(const Launch& launch, const GruCuda& gru, int64_t shared_bytes, bool backward) {
  if (gru.batch < 0 || gru.length < 0 || gru.inputs < 1 || gru.hidden < 1) return Status::kBadArgument;
  constexpr int kMany = 8;
  const auto fits = [&](auto shape) {
    return (backward ? shape.backward_bytes(gru) : shape.forward_bytes(gru)) <= shared_bytes;
  };
  if (gru.type == Element::kDouble) {
    if (!fits(GruShape<double, 1, false>())) return Status::kTooLarge;
    return run_gru<double, 1, false>(launch, gru, backward);
  }
  if (fits(GruShape<float, kMany, true>())) return run_gru<float, kMany, true>(launch, gru, backward);
  if (fits(GruShape<float, kMany, false>())) return run_gru<float, kMany, false>(launch, gru, backward);
  if (fits(GruShape<float, 1, false>())) return run_gru<float, 1, false>(launch, gru, backward);
  return Status::kTooLarge;
}

}  // namespace solid
