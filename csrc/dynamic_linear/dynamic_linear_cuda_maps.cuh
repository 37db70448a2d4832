// Gradients of dynamic_mlp's maps and offsets, T = 1: the second launch of the backward.
//
//   dA[i, k, o] = sum_b z[b, k] m[b, i, o] x[b, i] g[b, o],   da[i, o] = sum_b m[b, i, o] x[b, i] g[b, o]
//
// A block has one task: two tiles of 32 components of z x 32 outputs, which its warps sum in registers over a
// strip of the batch, each warp every fourth run of 32 sequences. The clip's mask m is generated once more
// from the map's blocks, which stay in shared memory. The warps' sums are added in their order; of several
// strips the last block to finish adds the strips in their order. So the result is the same every time, and
// there is no faster way to switch to.
#pragma once

#include "dynamic_linear/dynamic_linear_cuda_tiles.cuh"

namespace solid {

// Which tiles of which map a block sums, and where in the batch.
struct MapTask {
  int branch = 0, layer = 0, index = 0;
  int column = 0;        // tile of outputs
  bool one_row = false;  // both tiles are of one row
  int first_row = 0, first_tile = 0, rows = 0, tiles = 0;
  int strip = 0;
  int64_t first = 0, end = 0;  // sequences
  int64_t parameters = 0;      // of the maps before this one

  // Row, tile of z and existence of either tile.
  SOLID_DEVICE int row(int n) const { return one_row ? first_row : first_row + n; }
  SOLID_DEVICE int code_tile(int n) const { return one_row ? first_tile + n : first_tile; }
  SOLID_DEVICE bool present(int n) const { return row(n) < rows && code_tile(n) < tiles; }

  SOLID_DEVICE MapTask(const DynamicCuda& call, const DynamicWorkspace& places, int64_t block) {
    index = int(block / places.strips);
    strip = int(block % places.strips);
    const int64_t length = (call.batch + places.strips - 1) / places.strips;
    const int64_t whole = (length + kTile - 1) / kTile * kTile;
    first = strip * whole;
    end = first + whole < call.batch ? first + whole : call.batch;
    int64_t left = index;
    if (call.code_dim[branch] == 0) branch = kSemantic;
    for (int64_t tasks; left >= (tasks = tasks_of(call, layer, branch)); left -= tasks) {
      parameters += (call.sizes[layer] + 1) * (call.code_dim[branch] + 1) * call.sizes[layer + 1];
      if (++layer == call.layers) ++branch, layer = 0;
    }
    const int columns = int(tiles_of(call.sizes[layer + 1]));
    rows = int(call.sizes[layer] + 1);
    tiles = int(tiles_of(call.code_dim[branch]));
    one_row = tiles > 1;
    column = int(left) % columns;
    const int pair = int(left) / columns, pairs = (tiles + 1) / 2;
    first_row = one_row ? pair / pairs : kPair * pair;
    first_tile = one_row ? kPair * (pair % pairs) : 0;
  }
};

// The block's sums, [kPair][33][pitch] in shared memory with the offset's in line 32, to where they belong.
template <class T, class Block, class Shared>
SOLID_DEVICE void finish_task(Block& block, const DynamicCuda& call, const DynamicWorkspace& places,
                              const MapTask& task, const Shared& sums, int pitch, Shared& flag) {
  const int64_t outputs = call.sizes[task.layer + 1], code_dim = call.code_dim[task.branch];
  const int64_t rows = call.sizes[task.layer] + 1;
  void* dmap = call.dmaps[task.branch][task.layer];
  void* doffset = call.doffsets[task.branch][task.layer];
  // use(place in sums, in the map or the offset, whether the offset)
  const auto each = [&](const auto& use) {
    for (int i = block.thread(); i < kPair * kLines * kTile; i += Block::kThreads) {
      const int n = i / (kLines * kTile), line = i / kTile % kLines;
      const int64_t component = int64_t(task.code_tile(n)) * kTile + line,
                    o = int64_t(task.column) * kTile + i % kTile;
      const bool offset = line == kTile;
      if (!task.present(n) || o >= outputs || (offset ? task.code_tile(n) > 0 : component >= code_dim))
        continue;
      const int64_t row = task.row(n);
      use((n * kLines + line) * pitch + i % kTile, (offset ? row : row * code_dim + component) * outputs + o,
          offset);
    }
  };
  const auto store = [&](int64_t at, bool offset, T value) {
    void* to = offset ? doffset : dmap;
    if (to != nullptr) store_element<T>(to, call.type, at, value);
  };
  if (places.strips == 1) {
    each([&](int from, int64_t at, bool offset) { store(at, offset, sums[from]); });
    return;
  }
  T* const partials = static_cast<T*>(call.workspace) + places.partials + task.parameters;
  const int64_t after_map = rows * code_dim * outputs;
  each([&](int from, int64_t at, bool offset) {
    partials[task.strip * places.parameters + (offset ? after_map + at : at)] = sums[from];
  });
  block.fence();
  block.sync();
  if (block.thread() == 0) flag.set(0, T(block.add(counters_of<T>(call, places) + task.index, 1)));
  block.sync();
  if (int(flag[0]) + 1 < places.strips) return;
  block.fence();
  each([&](int, int64_t at, bool offset) {
    T sum = 0;
    for (int64_t strip = 0; strip < places.strips; ++strip)
      sum += partials[strip * places.parameters + (offset ? after_map + at : at)];
    store(at, offset, sum);
  });
}

template <class Math>
struct MapShape {
  static constexpr int kWarps = 4;
  static constexpr int kMapPitch = kTile + kLeftPitchTransposed;
  static constexpr int kTilePitch = kTile + Math::kRightPitch;

  int map_tiles, z_pitch;

  SOLID_BOTH MapShape(const DynamicCuda& call) : map_tiles(0), z_pitch(0) {
    for (int branch = 0; branch < kBranches; ++branch) {
      const int tiles = int(tiles_of(call.code_dim[branch]));
      map_tiles = tiles > map_tiles ? tiles : map_tiles;
    }
    z_pitch = map_tiles * kTile + Math::kRightPitch;
    map_tiles = map_tiles > kPair ? map_tiles : kPair;
  }
  SOLID_BOTH int maps() const { return map_tiles * kLines * kMapPitch; }
  // Of a warp: z, g and x m g of 32 sequences, and x of two rows.
  SOLID_BOTH int own() const { return kTile * (z_pitch + kMapPitch + kTilePitch + kPair); }
  SOLID_BOTH int64_t bytes() const { return 4 * int64_t(maps() + kWarps * own() + 4); }
};

template <class Math>
struct DynamicMapTiles {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = Math::kMapBlocks;
  using Args = TileArgs;
  static constexpr int kRows = Math::kRows, kColumns = Math::kColumns;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    using Floats = typename Block::template Shared<float>;
    using Shape = MapShape<Math>;
    const DynamicCuda& call = args.call;
    const Shape shape(call);
    const DynamicWorkspace& places = args.places;
    const MapTask task(call, places, block.index());
    const int branch = task.branch, l = task.layer, lane = block.lane();
    const int tiles = int(tiles_of(call.code_dim[branch]));
    const bool clip = bounded(call, branch);
    const float delta = float(call.delta);
    auto maps = block.template shared<float>(shape.maps());
    Floats own = block.template shared<float>(Shape::kWarps * shape.own());
    auto flag = block.template shared<float>(4);
    const int z_at = block.warp() * shape.own(), g_at = z_at + kTile * shape.z_pitch;
    const int m_at = g_at + kTile * Shape::kMapPitch, x_at = m_at + kTile * Shape::kTilePitch;

    if (clip) {
      for (int tile = 0; tile < (task.one_row ? tiles : kPair); ++tile) {
        load_map(block, args, l, branch, task.row(tile), 1, task.one_row ? tile : 0, task.column,
                 Shape::kMapPitch, maps, tile * kLines * Shape::kMapPitch);
      }
      block.commit_copies();
      block.template wait_copies<0>();
      block.sync();
    }

    const int64_t inputs = call.sizes[l], outputs = call.sizes[l + 1], code_dim = call.code_dim[branch];
    const float* hidden = l == 0 ? nullptr : hidden_of<float>(call, l);
    const float* gradient = gradient_of<float>(call, l);
    float sums[kPair][1][kRows][kColumns], offsets[kPair] = {};  // offsets: of the lane's one row
#pragma unroll
    for (int n = 0; n < kPair; ++n)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sums[n][0][r][c] = 0;

    for (int64_t b = task.first + block.warp() * kTile; b < task.end; b += Shape::kWarps * kTile) {
      load_own(block, call.z[branch], call.type, code_dim, 0, tiles * kTile, b, task.end, shape.z_pitch, own,
               z_at);
      load_own(block, gradient, Element::kFloat, outputs, task.column * kTile, kTile, b, task.end,
               Shape::kMapPitch, own, g_at);
      block.commit_copies();
#pragma unroll
      for (int n = 0; n < kPair; ++n) {
        const int64_t row = task.row(n);
        const bool present = b + lane < task.end && row <= inputs;
        own.set(x_at + n * kTile + lane, !present ? 0.f
                                         : row == inputs
                                             ? 1.f
                                             : layer_input(call, l, hidden, (b + lane) * inputs + row));
      }
      block.template wait_copies<0>();
      block.sync_warp();
#pragma unroll
      for (int n = 0; n < kPair; ++n) {
        if (n > 0 && task.one_row) {
          Math::template multiply<false>(block, own, z_at + task.code_tile(n) * kTile % (tiles * kTile),
                                         shape.z_pitch, own, {m_at}, Shape::kTilePitch, sums[n]);
          continue;
        }
        float w[1][kRows][kColumns];
        if (clip) {
          const int map = n * kLines * Shape::kMapPitch;
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const float offset = maps[map + kTile * Shape::kMapPitch + Math::row(lane, r)];
#pragma unroll
            for (int c = 0; c < kColumns; ++c) w[0][r][c] = offset;
          }
          for (int tile = 0; tile < tiles; ++tile) {
            Math::template multiply<true>(block, maps, map + tile * kLines * Shape::kMapPitch,
                                          Shape::kMapPitch, own, {z_at + tile * kTile}, shape.z_pitch, w);
          }
        }
        float parts[kRows] = {};
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int column = Math::template column<true>(lane, c);
          const float x = own[x_at + n * kTile + column];
#pragma unroll
          for (int run = 0; run < kRows; run += Math::kRun) {
            auto values =
                own.template pack<Math::kRun>(g_at + column * Shape::kMapPitch + Math::row(lane, run));
#pragma unroll
            for (int j = 0; j < Math::kRun; ++j) {
              const int r = run + j;
              values.at[j] = !clip || inside(w[0][r][c], delta) ? x * values.at[j] : 0.f;
              parts[r] += values.at[j];
            }
            own.template set_pack<Math::kRun>(m_at + column * Shape::kTilePitch + Math::row(lane, run),
                                              values);
          }
        }
        offsets[n] += sum_over_columns(block, parts);
        block.sync_warp();
        Math::template multiply<false>(block, own, z_at + task.code_tile(n) * kTile, shape.z_pitch, own,
                                       {m_at}, Shape::kTilePitch, sums[n]);
        if (!task.one_row) block.sync_warp();
      }
      block.sync_warp();
    }

    block.sync();
    for (int turn = 0; turn < Shape::kWarps; ++turn) {
      if (turn == block.warp()) {
#pragma unroll
        for (int n = 0; n < kPair; ++n) {
          const auto add = [&](int line, int column, float value) {
            const int at = (n * kLines + line) * Shape::kMapPitch + column;
            maps.set(at, turn == 0 ? value : maps[at] + value);
          };
#pragma unroll
          for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int c = 0; c < kColumns; ++c)
              add(Math::row(lane, r), Math::template column<false>(lane, c), sums[n][0][r][c]);
          add(kTile, Math::row(lane, lane % kRows), offsets[n]);
        }
      }
      block.sync();
    }
    finish_task<float>(block, call, places, task, maps, Shape::kMapPitch, flag);
  }

 private:
  // Rows b .. b + 31 of an array [B][stride], columns first .. first + width - 1, to [32][pitch] of the warp;
  // what lies past `end` or the stride is zero.
  template <class Block>
  static SOLID_DEVICE void load_own(Block& block, const void* base, Element type, int64_t stride, int first,
                                    int width, int64_t b, int64_t end, int pitch,
                                    typename Block::template Shared<float>& to, int at) {
    const bool packed =
        type == Element::kFloat && stride % 4 == 0 && reinterpret_cast<uintptr_t>(base) % 16 == 0;
    const int per_line = packed ? width / 4 : width;
#pragma unroll 1
    for (int i = block.lane(); i < kTile * per_line; i += 32) {
      const int line = i / per_line, column = i % per_line * (packed ? 4 : 1);
      const bool present = b + line < end && first + column < stride;
      const int64_t from = present ? (b + line) * stride + first + column : 0;
      if (packed)
        block.template copy_async<4>(to, at + line * pitch + column, static_cast<const float*>(base) + from,
                                     present);
      else
        to.set(at + line * pitch + column, present ? load_element<float>(base, type, from) : 0.f);
    }
  }
};

}  // namespace solid
