// dynamic_mlp for what the tiles do not take: T > 1, float64, and sizes whose tiles overflow shared memory.
//
// A block takes up to kGroup sequences and generates their weights once, [D + 1][columns] at a time, in
// shared memory; all targets are applied to them. Backward, the sum over targets of x g^T takes the place of
// x g^T, as on the CPU.
#pragma once

#include "cuda/reduce.h"
#include "dynamic_linear/dynamic_linear_cuda_maps.cuh"

namespace solid {

constexpr int kGroup = 4;         // sequences that share what is read of a map
constexpr int kTargetRun = 4;     // targets that share what is read of the weights
constexpr int kWeightArrays = 3;  // backward: weights, and what meets the map of either branch

struct AnyArgs {
  explicit AnyArgs(const DynamicCuda& of) : call(of), places(of) {}

  DynamicCuda call;
  DynamicWorkspace places;
  int sequences = kGroup;  // of a block, kGroup at most
  int columns = kTile;     // of the weights held at a time, a power of two
};

// Bytes for `arrays` arrays of weights.
SOLID_BOTH int64_t any_bytes(const AnyArgs& args, int arrays) {
  const int64_t size = args.call.type == Element::kDouble ? 8 : 4;
  const int64_t one = args.sequences * (widest_of(args.call) + 1) * args.columns * size;
  return arrays * ((one + 15) / 16 * 16);
}

// The offset and then, component by component of z, the map's share of weight (row, column) of kGroup
// sequences from b on; `count` exist.
template <class T, int group>
SOLID_DEVICE void generate_weights(const DynamicCuda& call, int l, int branch, int64_t row, int64_t column,
                                   int64_t b, int count, T (&w)[group]) {
  const int64_t outputs = call.sizes[l + 1], code_dim = call.code_dim[branch];
  const T offset = load_element<T>(call.offsets[branch][l], call.type, row * outputs + column);
#pragma unroll
  for (int s = 0; s < group; ++s) w[s] = offset;
  for (int64_t k = 0; k < code_dim; ++k) {
    const T value = load_element<T>(call.maps[branch][l], call.type, (row * code_dim + k) * outputs + column);
#pragma unroll
    for (int s = 0; s < group; ++s)
      if (s < count)
        w[s] = fused(load_element<T>(call.z[branch], call.type, (b + s) * code_dim + k), value, w[s]);
  }
}

template <class T>
struct DynamicForwardAny {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 4;
  using Args = AnyArgs;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    const DynamicCuda& call = args.call;
    const int64_t first = block.index() * args.sequences, targets = call.targets;
    const int count = int(first + args.sequences < call.batch ? args.sequences : call.batch - first);
    const int area = int(widest_of(call) + 1) * args.columns;  // of a sequence
    auto weights = block.template shared<T>(args.sequences * area);
    const T delta = T(call.delta);
    for (int l = 0; l < call.layers; ++l) {
      const int64_t inputs = call.sizes[l], outputs = call.sizes[l + 1];
      const bool last = l + 1 == call.layers;
      const T* from = l == 0 ? nullptr : hidden_of<T>(call, l);
      T* to = last ? nullptr : hidden_of<T>(call, l + 1);
      for (int64_t o = 0; o < outputs; o += args.columns) {
        const int columns = int(outputs - o < args.columns ? outputs - o : args.columns);
        for (int i = block.thread(); i < int(inputs + 1) * columns; i += kThreads) {
          const int row = i / columns, column = i % columns;
          T w[kGroup] = {};
          if (call.code_dim[kItem] > 0) {
            generate_weights(call, l, kItem, row, o + column, first, count, w);
#pragma unroll
            for (int s = 0; s < kGroup; ++s) w[s] = clipped(w[s], delta);
          }
          if (call.code_dim[kSemantic] > 0) {
            T more[kGroup];
            generate_weights(call, l, kSemantic, row, o + column, first, count, more);
#pragma unroll
            for (int s = 0; s < kGroup; ++s) w[s] += more[s];
          }
#pragma unroll
          for (int s = 0; s < kGroup; ++s)
            if (s < count) weights.set(s * area + row * args.columns + column, w[s]);
        }
        block.sync();
        const int64_t runs = (targets + kTargetRun - 1) / kTargetRun;
        for (int64_t i = block.thread(); i < count * runs * columns; i += kThreads) {
          const int column = int(i % columns), s = int(i / columns / runs);
          const int64_t t = i / columns % runs * kTargetRun, at = (first + s) * targets + t;
          const int many = int(targets - t < kTargetRun ? targets - t : kTargetRun);
          const int w = s * area + column;
          T y[kTargetRun];
#pragma unroll
          for (int j = 0; j < kTargetRun; ++j) y[j] = weights[w + int(inputs) * args.columns];
          for (int d = 0; d < inputs; ++d) {
            const T weight = weights[w + d * args.columns];
#pragma unroll
            for (int j = 0; j < kTargetRun; ++j)
              if (j < many) y[j] = fused(layer_input(call, l, from, (at + j) * inputs + d), weight, y[j]);
          }
#pragma unroll
          for (int j = 0; j < kTargetRun; ++j) {
            if (j >= many) continue;
            const T value = curved(call, l) ? hyperbolic_tangent(y[j]) : y[j];
            const int64_t place = (at + j) * outputs + o + column;
            if (last)
              store_element(call.y, call.type, place, value);
            else
              to[place] = value;
          }
        }
        block.sync();
      }
    }
  }
};

template <class T>
struct DynamicBackwardAny {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 3;
  using Args = AnyArgs;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    const DynamicCuda& call = args.call;
    const DynamicWorkspace& places = args.places;
    T* const workspace = static_cast<T*>(call.workspace);
    zero_counters<T>(block, call, places);
    const int64_t first = block.index() * args.sequences, targets = call.targets;
    const int count = int(first + args.sequences < call.batch ? args.sequences : call.batch - first);
    const int area = int(widest_of(call) + 1) * args.columns;
    auto weights = block.template shared<T>(args.sequences * area);
    // What meets the maps: the sum over targets of x g^T, under the clip's mask for a bounded branch.
    auto item = block.template shared<T>(args.sequences * area);
    auto semantic = block.template shared<T>(args.sequences * area);
    const T delta = T(call.delta);

    const int64_t last = call.sizes[call.layers];
    T* const top = gradient_of<T>(call, call.layers - 1);
    for (int64_t i = block.thread(); i < count * targets * last; i += kThreads)
      top[first * targets * last + i] = top_gradient<T>(call, first * targets * last + i);
    block.sync();

    for (int l = call.layers - 1; l >= 0; --l) {
      const int64_t inputs = call.sizes[l], outputs = call.sizes[l + 1];
      const T* h = l == 0 ? nullptr : hidden_of<T>(call, l);
      const T* g = gradient_of<T>(call, l);
      T* below = l == 0 ? workspace + places.inputs : gradient_of<T>(call, l - 1);
      for (int64_t o = 0; o < outputs; o += args.columns) {
        const int columns = int(outputs - o < args.columns ? outputs - o : args.columns);
        for (int i = block.thread(); i < int(inputs + 1) * columns; i += kThreads) {
          const int row = i / columns, column = i % columns;
          T own[kGroup] = {}, trunk[kGroup] = {};
          if (call.code_dim[kItem] > 0) generate_weights(call, l, kItem, row, o + column, first, count, own);
          if (call.code_dim[kSemantic] > 0)
            generate_weights(call, l, kSemantic, row, o + column, first, count, trunk);
#pragma unroll
          for (int s = 0; s < kGroup; ++s) {
            if (s >= count) continue;
            T product = 0;
            for (int64_t t = 0; t < targets; ++t) {
              const int64_t at = (first + s) * targets + t;
              const T x = row == inputs ? T(1) : layer_input(call, l, h, at * inputs + row);
              product = fused(x, g[at * outputs + o + column], product);
            }
            const int at = s * area + row * args.columns + column;
            weights.set(at, clipped(own[s], delta) + trunk[s]);
            item.set(at, !bounded(call, kItem) || inside(own[s], delta) ? product : T(0));
            semantic.set(at, product);
          }
        }
        block.sync();
        const bool begins = o == 0, ends = o + args.columns >= outputs;
        for (int branch = 0; branch < kBranches; ++branch) {
          if (call.code_dim[branch] == 0) continue;
          add_dz(block, args, l, branch, o, columns, first, count, area, branch == kItem ? item : semantic,
                 workspace + places.dz[branch], begins && l + 1 == call.layers);
        }
        for (int64_t i = block.thread(); i < count * targets * inputs; i += kThreads) {
          const int row = int(i % inputs), s = int(i / inputs / targets);
          const int64_t at = first * targets + i / inputs, place = at * inputs + row;
          T sum = begins ? T(0) : below[place];
          for (int column = 0; column < columns; ++column)
            sum = fused(g[at * outputs + o + column], weights[s * area + row * args.columns + column], sum);
          if (ends && l > 0) sum *= T(1) - h[place] * h[place];
          if (ends && l == 0 && call.dx != nullptr) store_element(call.dx, call.type, place, sum);
          below[place] = sum;
        }
        block.sync();
      }
    }
    for (int branch = 0; branch < kBranches; ++branch) {
      if (call.dz[branch] == nullptr) continue;
      const int64_t code_dim = call.code_dim[branch], begin = first * code_dim;
      for (int64_t i = block.thread(); i < count * code_dim; i += kThreads)
        store_element(call.dz[branch], call.type, begin + i, workspace[places.dz[branch] + begin + i]);
    }
  }

 private:
  // dz[k] += sum over (i, o) of A[i, k, o] product[i, o]: a warp per component, its lanes across (i, o).
  template <class Block, class Shared>
  static SOLID_DEVICE void add_dz(Block& block, const Args& args, int l, int branch, int64_t o, int columns,
                                  int64_t first, int count, int area, const Shared& product, T* dz,
                                  bool begins) {
    const DynamicCuda& call = args.call;
    const int64_t outputs = call.sizes[l + 1], code_dim = call.code_dim[branch];
    const int many = int(call.sizes[l] + 1) * columns;
    for (int64_t k = block.warp(); k < code_dim; k += Block::kWarps) {
      T sums[kGroup] = {};
      for (int i = block.lane(); i < many; i += 32) {
        const int row = i / columns, column = i % columns;
        const T value =
            load_element<T>(call.maps[branch][l], call.type, (row * code_dim + k) * outputs + o + column);
#pragma unroll
        for (int s = 0; s < kGroup; ++s)
          if (s < count) sums[s] = fused(product[s * area + row * args.columns + column], value, sums[s]);
      }
#pragma unroll
      for (int s = 0; s < kGroup; ++s) {
        const T sum = warp_sum(block, sums[s]);
        if (s >= count || block.lane() != 0) continue;
        T& to = dz[(first + s) * code_dim + k];
        to = begins ? sum : to + sum;
      }
    }
  }
};

// The tasks of DynamicMapTiles, for any T and in float64.
template <class T>
struct DynamicMapAny {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 3;
  using Args = AnyArgs;
  static constexpr int kPitch = kTile + 1;
  static constexpr int kEach = kTile / 4;  // components of a warp

  static SOLID_BOTH int64_t bytes(const DynamicCuda& call) {
    return (kPair * kLines * kPitch + kPair * kGroup * kTile + 8) * (call.type == Element::kDouble ? 8 : 4);
  }

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    const DynamicCuda& call = args.call;
    const DynamicWorkspace& places = args.places;
    const MapTask task(call, places, block.index());
    const int branch = task.branch, l = task.layer, lane = block.lane(), warp = block.warp();
    const int64_t inputs = call.sizes[l], outputs = call.sizes[l + 1], code_dim = call.code_dim[branch];
    const T* h = l == 0 ? nullptr : hidden_of<T>(call, l);
    const T* g = gradient_of<T>(call, l);
    const T delta = T(call.delta);
    auto totals = block.template shared<T>(kPair * kLines * kPitch);
    auto products = block.template shared<T>(kPair * kGroup * kTile);
    auto flag = block.template shared<T>(4);
    const int64_t o = int64_t(task.column) * kTile + lane;
    T sums[kPair][kEach] = {}, offsets[kPair] = {};
    for (int64_t b = task.first; b < task.end; b += kGroup) {
      const int count = int(task.end - b < kGroup ? task.end - b : kGroup);
      // Each warp one sequence of the group: the mask, and the sum over targets of x g^T.
      for (int n = 0; n < (task.one_row ? 1 : kPair); ++n) {
        const int64_t row = task.row(n);
        T product = 0;
        if (warp < count && row <= inputs && o < outputs) {
          for (int64_t t = 0; t < call.targets; ++t) {
            const int64_t at = (b + warp) * call.targets + t;
            const T x = row == inputs ? T(1) : layer_input(call, l, h, at * inputs + row);
            product = fused(x, g[at * outputs + o], product);
          }
          if (bounded(call, branch)) {
            T w[1];
            generate_weights(call, l, branch, row, o, b + warp, 1, w);
            if (!inside(w[0], delta)) product = 0;
          }
        }
        products.set((n * kGroup + warp) * kTile + lane, product);
      }
      block.sync();
#pragma unroll
      for (int n = 0; n < kPair; ++n) {
        for (int s = 0; s < count; ++s) {
          const T product = products[((task.one_row ? 0 : n) * kGroup + s) * kTile + lane];
          offsets[n] += product;
#pragma unroll
          for (int j = 0; j < kEach; ++j) {
            const int64_t component = int64_t(task.code_tile(n)) * kTile + warp * kEach + j;
            if (component < code_dim)
              sums[n][j] = fused(load_element<T>(call.z[branch], call.type, (b + s) * code_dim + component),
                                 product, sums[n][j]);
          }
        }
      }
      block.sync();
    }
#pragma unroll
    for (int n = 0; n < kPair; ++n) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) totals.set((n * kLines + warp * kEach + j) * kPitch + lane, sums[n][j]);
      if (warp == 0) totals.set((n * kLines + kTile) * kPitch + lane, offsets[n]);
    }
    block.sync();
    finish_task<T>(block, call, places, task, totals, kPitch, flag);
  }
};

}  // namespace solid
