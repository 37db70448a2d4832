// dynamic_mlp by tiles of 32 x 32, T = 1: forward, and backward down to each layer's gradient g.
//
// A block of four warps takes 32, 64 or 128 sequences, one, two or all four warps across them; warps of the
// same sequences take different input rows i (`phases`), two rows at a time. For a row, 32 sequences and 32
// outputs, a warp holds the generated weights of both branches in registers: a product of z^T [k][sequences]
// with the map's block [k, O], then the clip, then y += x_i W[i, :], and they are gone. Blocks of the map
// stream through shared memory twice buffered, 32 components of z and the offset (line 32) at a time.
//
// Backward, bounded branch: the weights are generated again for dx_i = <g, clip(w)> and their mask m; x_i m
// g, a tile in shared memory, then meets the same block of the map: dz += sum_o A[i, :, o] x_i m_o g_o. Of an
// unbounded branch no weight is needed: with U[k] = sum_o A[i, k, o] g_o, dz += x_i U and dx_i += <z, U> +
// <a_i, g>.
#pragma once

#include "cuda/numbers.h"
#include "dynamic_linear/dynamic_linear_cuda_math.cuh"
#include "dynamic_linear/dynamic_linear_cuda_view.cuh"

namespace solid {

constexpr int kPair = 2;           // rows of a warp at a time
constexpr int kLines = kTile + 1;  // of a tile of the map: components of z, then the offset

struct TileArgs {
  explicit TileArgs(const DynamicCuda& of) : call(of), places(of) {}

  DynamicCuda call;
  DynamicWorkspace places;
  int groups = 1;       // warps across sequences: 1, 2 or 4
  uint32_t packed = 0;  // bit 16 branch + l: rows of that map may be read four floats at a time
};

SOLID_BOTH int round_up_to(int64_t value, int step) { return int((value + step - 1) / step * step); }
SOLID_BOTH int larger_of(int64_t one, int64_t other) { return int(one > other ? one : other); }

// Sizes of a block that both sides must agree on, in floats.
template <class Math>
struct TileShape {
  static constexpr int kWarps = 4;
  static constexpr int kRightPitch = kTile + Math::kRightPitch;
  static constexpr int kMapTile = kLines * kRightPitch;

  // height: lines of activations, whole steps of rows; lines: of gradients, also read 32 outputs at a time.
  int sequences, phases, rows, height, lines, most_code_dim, z_pitch, pitch;

  SOLID_BOTH TileShape(const DynamicCuda& call, int groups)
      : sequences(groups * kTile),
        phases(kWarps / groups),
        rows(kPair * phases),
        height(round_up_to(widest_of(call) + 1, rows)),
        lines(larger_of(height, round_up_to(widest_of(call), kTile))),
        most_code_dim(round_up_to(larger_of(call.code_dim[0], call.code_dim[1]), kTile)),
        z_pitch(sequences + kLeftPitch),
        pitch(sequences + kLeftPitchTransposed) {}

  SOLID_BOTH int stages() const { return 2 * rows * kMapTile; }
  SOLID_BOTH int activations() const { return height * pitch; }
  SOLID_BOTH int gradients() const { return lines * pitch; }
  SOLID_BOTH int own_pitch() const { return kTile + kLeftPitchTransposed; }
  // A tile per warp of x_i m g, two where z comes in several tiles and it is read again; and dz of those.
  SOLID_BOTH int masked() const { return (most_code_dim > kTile ? 2 : 1) * kTile * own_pitch(); }
  SOLID_BOTH int kept_dz() const { return most_code_dim > kTile ? most_code_dim * own_pitch() : 0; }

  SOLID_BOTH int64_t forward_bytes(const DynamicCuda& call) const {
    return 4 * (kTile * (tiles_of(call.code_dim[0]) + tiles_of(call.code_dim[1])) * z_pitch +
                2 * activations() + stages());
  }
  SOLID_BOTH int64_t backward_bytes() const {
    return 4 * (int64_t(most_code_dim) * z_pitch + activations() + 2 * gradients() + stages() +
                kWarps * (masked() + kept_dz()));
  }
};

// Starts copying a layer's rows first .. first + count - 1 of 32 components of z and 32 outputs, and their
// offsets, to [count][33][pitch] at `at`; what does not exist is zero.
template <class Block>
SOLID_DEVICE void load_map(Block& block, const TileArgs& args, int l, int branch, int first, int count,
                           int code_tile, int column_tile, int pitch,
                           typename Block::template Shared<float>& to, int at) {
  const DynamicCuda& call = args.call;
  const int64_t outputs = call.sizes[l + 1], code_dim = call.code_dim[branch];
  const void* map = call.maps[branch][l];
  const void* offset = call.offsets[branch][l];
  const auto each = [&](int per_line, const auto& copy) {
#pragma unroll 1
    for (int i = block.thread(); i < count * kLines * per_line; i += Block::kThreads) {
      const int line = i / per_line, step = kTile / per_line;
      const int j = line % kLines, row = first + line / kLines;
      const int64_t component = int64_t(code_tile) * kTile + j;
      const int64_t column = int64_t(column_tile) * kTile + i % per_line * step;
      const bool present = row <= call.sizes[l] && column < outputs && (j == kTile || component < code_dim);
      const int64_t from = !present ? 0 : (j == kTile ? row : row * code_dim + component) * outputs + column;
      copy(j == kTile ? offset : map, from, at + line * pitch + i % per_line * step, present);
    }
  };
  if ((args.packed >> (16 * branch + l) & 1) != 0) {
    each(kTile / 4, [&](const void* base, int64_t from, int place, bool present) {
      block.template copy_async<4>(to, place, static_cast<const float*>(base) + from, present);
    });
  } else if (call.type == Element::kFloat) {
    each(kTile, [&](const void* base, int64_t from, int place, bool present) {
      block.template copy_async<1>(to, place, static_cast<const float*>(base) + from, present);
    });
  } else {
    each(kTile, [&](const void* base, int64_t from, int place, bool present) {
      to.set(place, present ? load_element<float>(base, call.type, from) : 0.f);
    });
  }
}

// z^T [code_dim rounded up][sequences], zero where there is none; `rounded` as factors of products alone.
template <class Math, class Block>
SOLID_DEVICE void load_conditions(Block& block, const DynamicCuda& call, int branch, int64_t first,
                                  int sequences, int pitch, bool rounded,
                                  typename Block::template Shared<float>& to, int at) {
  const int64_t code_dim = call.code_dim[branch];
  const int width = round_up_to(code_dim, kTile);
  for (int i = block.thread(); i < sequences * width; i += Block::kThreads) {
    const int m = i / width, component = i % width;
    const bool present = component < code_dim && first + m < call.batch;
    const float value =
        present ? load_element<float>(call.z[branch], call.type, (first + m) * code_dim + component) : 0.f;
    to.set(at + component * pitch + m, rounded ? Math::round(value) : value);
  }
}

// Lines inputs .. height - 1 of an activation tile: a 1 that the bias meets, then zeros.
template <class Block>
SOLID_DEVICE void end_inputs(Block& block, int64_t inputs, int height, int sequences, int pitch,
                             typename Block::template Shared<float>& to) {
  for (int i = block.thread(); i < (height - int(inputs)) * sequences; i += Block::kThreads) {
    const int line = int(inputs) + i / sequences;
    to.set(line * pitch + i % sequences, line == inputs ? 1.f : 0.f);
  }
}

// x or h_l, transposed: [D_l + 1 ..][sequences].
template <class Block>
SOLID_DEVICE void load_inputs(Block& block, const DynamicCuda& call, int l, int64_t first, int height,
                              int sequences, int pitch, typename Block::template Shared<float>& to) {
  const int64_t inputs = call.sizes[l];
  const float* hidden = l == 0 ? nullptr : hidden_of<float>(call, l);
  for (int i = block.thread(); i < sequences * inputs; i += Block::kThreads) {
    const int m = i / int(inputs), d = i % int(inputs);
    to.set(d * pitch + m,
           first + m < call.batch ? layer_input(call, l, hidden, (first + m) * inputs + d) : 0.f);
  }
  end_inputs(block, inputs, height, sequences, pitch, to);
}

// Stages of a pass over a layer's map, in the order in which they are loaded and used.
struct TileCursor {
  int column = 0, row = 0, step = 0;
  SOLID_DEVICE void advance(int rows, int inputs, int steps) {
    if (++step < steps) return;
    step = 0, row += rows;
    if (row <= inputs) return;
    row = 0, ++column;
  }
};

template <class Math>
struct DynamicForwardTiles {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 3;
  using Args = TileArgs;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    constexpr int kRows = Math::kRows, kColumns = Math::kColumns;
    const DynamicCuda& call = args.call;
    const TileShape<Math> shape(call, args.groups);
    const int group = block.warp() % args.groups, phase = block.warp() / args.groups, lane = block.lane();
    const int64_t first = block.index() * shape.sequences;
    const int item_steps = int(tiles_of(call.code_dim[kItem]));
    const int steps = item_steps + int(tiles_of(call.code_dim[kSemantic]));
    auto z = block.template shared<float>(steps * kTile * shape.z_pitch);
    auto in = block.template shared<float>(shape.activations());
    auto out = block.template shared<float>(shape.activations());
    auto stages = block.template shared<float>(shape.stages());

    for (int branch = 0; branch < kBranches; ++branch) {
      load_conditions<Math>(block, call, branch, first, shape.sequences, shape.z_pitch, true, z,
                            branch * item_steps * kTile * shape.z_pitch);
    }
    load_inputs(block, call, 0, first, shape.height, shape.sequences, shape.pitch, in);

    const float delta = float(call.delta);
    for (int l = 0; l < call.layers; ++l) {
      const int inputs = int(call.sizes[l]), outputs = int(call.sizes[l + 1]);
      const int total = int(tiles_of(outputs)) * (round_up_to(inputs + 1, shape.rows) / shape.rows) * steps;
      TileCursor here, ahead;
      const auto load = [&](int stage) {
        const int branch = ahead.step < item_steps ? kItem : kSemantic;
        load_map(block, args, l, branch, ahead.row, shape.rows,
                 ahead.step - (branch == kItem ? 0 : item_steps), ahead.column, shape.kRightPitch, stages,
                 stage % 2 * shape.rows * TileShape<Math>::kMapTile);
        block.commit_copies();
        ahead.advance(shape.rows, inputs, steps);
      };
      load(0);
      float y[kRows][kColumns];
      float w[kPair][kRows][kColumns];
      for (int stage = 0; stage < total; ++stage) {
        block.template wait_copies<0>();
        block.sync();
        if (stage + 1 < total) load(stage + 1);
        int map[kPair];

#pragma unroll
        for (int n = 0; n < kPair; ++n)
          map[n] = (stage % 2 * shape.rows + phase * kPair + n) * TileShape<Math>::kMapTile;
        const bool begins = here.step == 0, trunk = here.step == item_steps;
        if (begins || trunk) {
#pragma unroll
          for (int n = 0; n < kPair; ++n)
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
              const float offset =
                  stages[map[n] + kTile * shape.kRightPitch + Math::template column<false>(lane, c)];
#pragma unroll
              for (int r = 0; r < kRows; ++r)
                w[n][r][c] = begins ? offset : clipped(w[n][r][c], delta) + offset;
            }
        }
        Math::template multiply<false, true>(block, z, here.step * kTile * shape.z_pitch + group * kTile,
                                             shape.z_pitch, stages, map, shape.kRightPitch, w);
        if (here.step + 1 == steps) {
          const bool item_alone = steps == item_steps;
          if (here.row == 0) {
#pragma unroll
            for (int r = 0; r < kRows; ++r)
#pragma unroll
              for (int c = 0; c < kColumns; ++c) y[r][c] = 0;
          }
#pragma unroll
          for (int n = 0; n < kPair; ++n) {
            const int row = here.row + phase * kPair + n;
            if (row > inputs) continue;  // there z may be infinite and the map zero: NaN
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
              const float x = in[row * shape.pitch + group * kTile + Math::row(lane, r)];
#pragma unroll
              for (int c = 0; c < kColumns; ++c)
                y[r][c] = fused(x, item_alone ? clipped(w[n][r][c], delta) : w[n][r][c], y[r][c]);
            }
          }
          if (here.row + shape.rows > inputs) {
            // Phases add up their rows one after the other: the same sum every time.
            for (int turn = 0; turn < shape.phases; ++turn) {
              if (phase == turn) {
#pragma unroll
                for (int c = 0; c < kColumns; ++c) {
                  const int o = here.column * kTile + Math::template column<false>(lane, c);
                  if (o < outputs) {
#pragma unroll
                    for (int r = 0; r < kRows; ++r) {
                      const int at = o * shape.pitch + group * kTile + Math::row(lane, r);
                      out.set(at, turn == 0 ? y[r][c] : out[at] + y[r][c]);
                    }
                  }
                }
              }
              if (shape.phases > 1) block.sync();
            }
          }
        }
        here.advance(shape.rows, inputs, steps);
      }
      block.sync();
      const bool last = l + 1 == call.layers;
      float* hidden = last || call.hidden == nullptr ? nullptr : hidden_of<float>(call, l + 1);
      for (int i = block.thread(); i < shape.sequences * outputs; i += kThreads) {
        const int m = i / outputs, o = i % outputs;
        const bool present = first + m < call.batch;
        const int64_t to = (first + m) * outputs + o;
        float value = out[o * shape.pitch + m];
        if (curved(call, l)) value = hyperbolic_tangent(value);
        if (last) {
          if (present) store_element(call.y, call.type, to, value);
        } else {
          out.set(o * shape.pitch + m, value);
          if (present && hidden != nullptr) hidden[to] = value;
        }
      }
      if (last) break;
      end_inputs(block, outputs, shape.height, shape.sequences, shape.pitch, out);
      const auto before = in;
      in = out;
      out = before;
      block.sync();
    }
  }
};

template <class Math>
struct DynamicBackwardTiles {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 2;
  using Args = TileArgs;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    const DynamicCuda& call = args.call;
    const TileShape<Math> shape(call, args.groups);
    const DynamicWorkspace& places = args.places;
    Pass<Block> pass{block,
                     args,
                     shape,
                     places,
                     block.index() * shape.sequences,
                     block.template shared<float>(shape.most_code_dim * shape.z_pitch),
                     block.template shared<float>(shape.activations()),
                     block.template shared<float>(shape.gradients()),
                     block.template shared<float>(shape.gradients()),
                     block.template shared<float>(shape.stages()),
                     block.template shared<float>(shape.kWarps * shape.masked()),
                     block.template shared<float>(shape.kWarps * shape.kept_dz())};
    zero_counters<float>(block, call, places);
    for (int l = call.layers - 1; l >= 0; --l) pass.layer(l);
  }

 private:
  static constexpr int kRows = Math::kRows, kColumns = Math::kColumns;
  using Weights = float[kPair][kRows][kColumns];

  template <class Block>
  struct Pass {
    using Floats = typename Block::template Shared<float>;
    Block& block;
    const Args& args;
    const TileShape<Math>& shape;
    const DynamicWorkspace& places;
    const int64_t first;
    Floats z, x, g, dx, stages, masked, kept_dz;

    SOLID_DEVICE void layer(int l) {
      const DynamicCuda& call = args.call;
      const int inputs = int(call.sizes[l]), outputs = int(call.sizes[l + 1]);
      float* gradient = gradient_of<float>(call, l);
      if (l + 1 == call.layers) {
        for (int i = block.thread(); i < shape.sequences * outputs; i += kThreads) {
          const int m = i / outputs, o = i % outputs;
          const int64_t at = (first + m) * outputs + o;
          const float up = first + m < call.batch ? top_gradient<float>(call, at) : 0.f;
          if (first + m < call.batch) gradient[at] = up;
          g.set(o * shape.pitch + m, up);
        }
      }
      for (int i = block.thread(); i < (shape.lines - outputs) * shape.sequences; i += kThreads)
        g.set((outputs + i / shape.sequences) * shape.pitch + i % shape.sequences, 0.f);
      for (int i = block.thread(); i < shape.lines * shape.sequences; i += kThreads)
        dx.set(i / shape.sequences * shape.pitch + i % shape.sequences, 0.f);
      load_inputs(block, call, l, first, shape.height, shape.sequences, shape.pitch, x);
      for (int branch = 0; branch < kBranches; ++branch) {
        if (call.code_dim[branch] == 0) continue;
        load_conditions<Math>(block, call, branch, first, shape.sequences, shape.z_pitch,
                              bounded(call, branch), z, 0);
        if (bounded(call, branch))
          rows<true>(l, branch);
        else
          rows<false>(l, branch);
        block.sync();
      }
      float* below = l > 0 ? gradient_of<float>(call, l - 1) : nullptr;
      for (int i = block.thread(); i < shape.sequences * inputs; i += kThreads) {
        const int m = i / inputs, d = i % inputs, at = d * shape.pitch + m;
        const int64_t to = (first + m) * inputs + d;
        const bool present = first + m < call.batch;
        const float h = x[at], up = l > 0 ? dx[at] * (1 - h * h) : dx[at];
        if (l > 0) dx.set(at, up);
        if (present && l > 0) below[to] = up;
        if (present && l == 0 && call.dx != nullptr) store_element(call.dx, call.type, to, up);
      }
      const auto before = g;
      g = dx;
      dx = before;
      block.sync();
    }

    // Both rows' gradient of x from the lanes' parts of it; a lane has the same rows and sequence every time.
    SOLID_DEVICE void add_dx(int row, float (&parts)[kRows], float more) {
      const int lane = block.lane(), group = block.warp() % args.groups;
      const float sum = sum_over_columns(block, parts) + more;
      const int at = row * shape.pitch + group * kTile + Math::row(lane, lane % kRows);
      dx.set(at, dx[at] + sum);
    }

    template <bool clip>
    SOLID_DEVICE void rows(int l, int branch) {
      const DynamicCuda& call = args.call;
      const int inputs = int(call.sizes[l]), outputs = int(call.sizes[l + 1]), lane = block.lane();
      const int group = block.warp() % args.groups, phase = block.warp() / args.groups;
      const int tiles = int(tiles_of(call.code_dim[branch]));
      // Weights need all tiles of z, then each tile meets x_i m g: the last one at once, the others going
      // back.
      const int steps = clip ? 2 * tiles - 1 : tiles;
      const int total = int(tiles_of(outputs)) * (round_up_to(inputs + 1, shape.rows) / shape.rows) * steps;
      const int own = block.warp() * shape.masked();
      const int own_dz = block.warp() * shape.kept_dz();
      const auto tile_of = [&](int step) { return step < tiles ? step : 2 * tiles - 2 - step; };
      const float delta = float(call.delta);
      TileCursor here, ahead;
      const auto load = [&](int stage) {
        load_map(block, args, l, branch, ahead.row, shape.rows, tile_of(ahead.step), ahead.column,
                 shape.kRightPitch, stages, stage % 2 * shape.rows * TileShape<Math>::kMapTile);
        block.commit_copies();
        ahead.advance(shape.rows, inputs, steps);
      };
      load(0);
      // dz of the tile at hand stays in registers where there is one, and waits in kept_dz
      // otherwise.
      float dz[1][kRows][kColumns];
      Weights w;
      const auto each_dz = [&](int tile, const auto& use) {
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int c = 0; c < kColumns; ++c)
            use(own_dz + (tile * kTile + Math::template column<true>(lane, c)) * shape.own_pitch() +
                    Math::row(lane, r),
                dz[0][r][c]);
      };
      for (int tile = 0; tile < tiles; ++tile) {
        each_dz(tile, [&](int at, float& value) {
          value = 0;
          if (tiles > 1) kept_dz.set(at, value);
        });
      }
      for (int stage = 0; stage < total; ++stage) {
        block.template wait_copies<0>();
        block.sync();
        if (stage + 1 < total) load(stage + 1);
        int map[kPair];

#pragma unroll
        for (int n = 0; n < kPair; ++n)
          map[n] = (stage % 2 * shape.rows + phase * kPair + n) * TileShape<Math>::kMapTile;
        const int tile = tile_of(here.step), row = here.row + phase * kPair;
        const int line = here.column * kTile;
        if (clip && here.step < tiles) {
          generate(w, here.step == 0, here.step + 1 == tiles, tile, tiles, row, line, l, map, own, delta);
        }
        if (!clip || here.step + 1 >= tiles) {
          if (tiles > 1) each_dz(tile, [&](int at, float& value) { value = kept_dz[at]; });
          if constexpr (clip) {
            for (int n = 0; n < kPair; ++n) {
              const int one[1] = {map[n]};
              if (tiles == 1) {
                mask(w, n, row, line, l, own, delta);
                block.sync_warp();
              }
              Math::template multiply<true>(block, masked,
                                            own + (tiles > 1 ? n * kTile * shape.own_pitch() : 0),
                                            shape.own_pitch(), stages, one, shape.kRightPitch, dz);
              if (tiles == 1) block.sync_warp();
            }
          } else {
            unbounded(w, tile, row, line, map, dz);
          }
          if (tiles > 1) each_dz(tile, [&](int at, float& value) { kept_dz.set(at, value); });
        }
        here.advance(shape.rows, inputs, steps);
      }
      // Through shared memory, so that lanes are components and global memory is read and written in lines.
      // (From registers, the addresses of 32 places would be kept from before the loop above: spills.)
      if (tiles == 1) {
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int c = 0; c < kColumns; ++c)
            masked.set(own + Math::template column<true>(lane, c) * shape.own_pitch() + Math::row(lane, r),
                       dz[0][r][c]);
      }
      block.sync_warp();
      const Floats& summed = tiles == 1 ? masked : kept_dz;
      const int from = tiles == 1 ? own : own_dz;
      // Phases and layers add up in a fixed order; the lowest layer's last phase has the sum.
      float* sums = static_cast<float*>(call.workspace) + places.dz[branch];
      const int64_t code_dim = call.code_dim[branch];
      for (int turn = 0; turn < shape.phases; ++turn) {
        if (turn == phase) {
          const bool begins = l + 1 == call.layers && turn == 0, ends = l == 0 && turn + 1 == shape.phases;
          for (int m = 0; m < kTile; ++m) {
            const int64_t b = first + group * kTile + m;
            if (b >= call.batch) break;
            for (int component = lane; component < code_dim; component += 32) {
              const float value = summed[from + component * shape.own_pitch() + m];
              const int64_t at = b * code_dim + component;
              const float sum = begins ? value : sums[at] + value;
              if (!ends)
                sums[at] = sum;
              else if (call.dz[branch] != nullptr)
                store_element(call.dz[branch], call.type, at, sum);
            }
          }
        }
        if (shape.phases > 1) block.sync();
      }
    }

    // The bounded branch's weights of both rows, 32 components further.
    SOLID_DEVICE void generate(Weights& w, bool begins, bool ends, int tile, int tiles, int row, int line,
                               int l, const int (&map)[kPair], int own, float delta) {
      const int lane = block.lane(), group = block.warp() % args.groups;
      if (begins) {
#pragma unroll
        for (int n = 0; n < kPair; ++n)
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const float offset =
                stages[map[n] + kTile * shape.kRightPitch + Math::template column<false>(lane, c)];
#pragma unroll
            for (int r = 0; r < kRows; ++r) w[n][r][c] = offset;
          }
      }
      Math::template multiply<false, true>(block, z, tile * kTile * shape.z_pitch + group * kTile,
                                           shape.z_pitch, stages, map, shape.kRightPitch, w);
      if (ends && tiles > 1) {
        for (int n = 0; n < kPair; ++n) mask(w, n, row, line, l, own + n * kTile * shape.own_pitch(), delta);
        block.sync_warp();
      }
    }

    // dx_i += <g, clip(w)> of row n; x_i m g to the warp's own tile at `to`. Where the layer has no such row
    // or output both get nothing: a weight there is made of zeros, and zero times infinity is NaN.
    SOLID_DEVICE void mask(const Weights& w, int n, int row, int line, int l, int to, float delta) {
      const int64_t outputs = row + n <= args.call.sizes[l] ? args.call.sizes[l + 1] : 0;
      const int lane = block.lane(), group = block.warp() % args.groups;
      float parts[kRows] = {}, xs[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) xs[r] = x[(row + n) * shape.pitch + group * kTile + Math::row(lane, r)];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int column = Math::template column<false>(lane, c);
        const bool exists = line + column < outputs;
#pragma unroll
        for (int run = 0; run < kRows; run += Math::kRun) {
          const auto up = g.template pack<Math::kRun>((line + column) * shape.pitch + group * kTile +
                                                      Math::row(lane, run));
          Pack<float, Math::kRun> values;
#pragma unroll
          for (int j = 0; j < Math::kRun; ++j) {
            const int r = run + j;
            const float weight = n == 0 ? w[0][r][c] : w[1][r][c];
            if (exists) parts[r] = fused(up.at[j], clipped(weight, delta), parts[r]);
            values.at[j] = exists && inside(weight, delta) ? xs[r] * up.at[j] : 0.f;
          }
          masked.template set_pack<Math::kRun>(to + column * shape.own_pitch() + Math::row(lane, run),
                                               values);
        }
      }
      add_dx(row + n, parts, 0);
    }

    // Both rows of an unbounded branch: U, dz and dx.
    SOLID_DEVICE void unbounded(Weights& w, int tile, int row, int line, const int (&map)[kPair],
                                float (&dz)[1][kRows][kColumns]) {
      const int lane = block.lane(), group = block.warp() % args.groups;
#pragma unroll
      for (int n = 0; n < kPair; ++n)
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int c = 0; c < kColumns; ++c) w[n][r][c] = 0;
      Math::template multiply<true>(block, g, line * shape.pitch + group * kTile, shape.pitch, stages, map,
                                    shape.kRightPitch, w);
#pragma unroll
      for (int n = 0; n < kPair; ++n) {
        float parts[kRows] = {}, xs[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          xs[r] = x[(row + n) * shape.pitch + group * kTile + Math::row(lane, r)];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int component = tile * kTile + Math::template column<true>(lane, c);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const float value = z[component * shape.z_pitch + group * kTile + Math::row(lane, r)];
            parts[r] = fused(value, w[n][r][c], parts[r]);
            dz[0][r][c] = fused(xs[r], w[n][r][c], dz[0][r][c]);
          }
        }
        float offsets = 0;
        if (tile == 0) {
          const int mine = group * kTile + Math::row(lane, lane % kRows);
          for (int o = 0; o < kTile; ++o)
            offsets = fused(stages[map[n] + kTile * shape.kRightPitch + o],
                            g[(line + o) * shape.pitch + mine], offsets);
        }
        add_dx(row + n, parts, offsets);
      }
    }
  };
};

}  // namespace solid
