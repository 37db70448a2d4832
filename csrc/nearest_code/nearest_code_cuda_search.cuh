// The exact search: a tile of rows against tiles of codes, squared differences one component after the other.
//
// A block holds 64 rows; 16 x 8 threads own 4 codes x 8 rows each of a 64 x 64 tile of sums, in registers.
// Components come in chunks of 32, transposed in shared memory so that a thread reads its codes and its rows
// as packs of four. The chain of a sum is that of the CPU's search by difference, so the bits are the same.
// The expansion ||c||^2 / 2 - <x, c> would take one operation a component in place of two, but needs a second
// pass for its norms, and a third for the rows that its rounding leaves open; where there is much to compare,
// matrix units screen first (nearest_code_cuda_screen.cuh).
#pragma once

#include "cuda/numbers.h"
#include "cuda/reduce.h"
#include "nearest_code/nearest_code_cuda.h"

namespace solid {

constexpr int kTile = 64;   // rows of a block, and codes compared at a time
constexpr int kDepth = 32;  // components of a chunk
constexpr int kTileStride =
    kTile + 4;  // keeps packs of four aligned and the transposing stores apart in banks
constexpr int kTileSize = kDepth * kTileStride;
constexpr int kSearchThreads = 128;
constexpr int kThreadRows = 8;
constexpr int kThreadCodes = 4;
constexpr int kCodeLanes = kTile / kThreadCodes;  // neighbouring threads that share their rows

// tile[d][row] = component first + d of row `row`, 0 beyond; offset(row): its first element, negative: none.
// A warp takes 8 components of 4 rows: whole 32-byte sectors from memory, all 32 banks in shared memory.
template <class T, class Block, class Tile, class From, class Offset>
SOLID_DEVICE void load_tile(Block& block, Tile& tile, const From* from, const Offset& offset, int64_t first,
                            int64_t dim) {
#pragma unroll 4
  for (int step = 0; step < kTile * kDepth / Block::kThreads; ++step) {
    const int i = step * Block::kThreads + block.thread();
    const int d = i % 8 + i / 32 % (kDepth / 8) * 8;
    const int row = i / 8 % 4 + i / (4 * kDepth) * 4;
    const int64_t at = offset(row);
    const bool present = at >= 0 && first + d < dim;
    tile.set(d * kTileStride + row, present ? T(widen(from[at + first + d])) : T(0));
  }
}

// The shared memory of the exact search.
template <class T, class Block>
struct SearchMemory {
  typename Block::template Shared<T> rows, codes;  // kTileSize
  typename Block::template Shared<int>
      taken;  // kTile: numbers, from first_row on, of the rows that are searched; negative: none
};

// The nearest code of each row taken; found(place in taken, code) is called by one thread for each place.
template <class T, class Block, class Found>
SOLID_DEVICE void search_tile(Block& block, const NearestCodeCuda& args, SearchMemory<T, Block>& memory,
                              int64_t first_row, const Found& found) {
  static_assert(Block::kThreads == kTile / kThreadRows * kCodeLanes, "one thread for each part of the tile");
  const int t = block.thread();
  const int first_place = t / kCodeLanes * kThreadRows;
  const int first_lane = t % kCodeLanes * kThreadCodes;
  const T* codebook = static_cast<const T*>(args.codebook);
  const bool whole = args.dim <= kDepth;  // one chunk: loaded once

  T best[kThreadRows];
  int code[kThreadRows];
#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) best[r] = infinity<T>(), code[r] = 0;

  for (int64_t first_code = 0; first_code < args.num_codes; first_code += kTile) {
    const auto code_offset = [&](int lane) {
      return first_code + lane < args.num_codes ? (first_code + lane) * args.dim : int64_t(-1);
    };
    const auto row_offset = [&](int place) {
      const int row = memory.taken[place];
      return row >= 0 ? (first_row + row) * args.x_stride : int64_t(-1);
    };
    T sum[kThreadRows][kThreadCodes];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
      for (int c = 0; c < kThreadCodes; ++c)
        sum[r][c] = first_code + first_lane + c < args.num_codes ? T(0) : infinity<T>();
    for (int64_t first = 0; first < args.dim; first += kDepth) {
      block.sync();  // the tile before has been read
      load_tile<T>(block, memory.codes, codebook, code_offset, first, args.dim);
      if (!whole || first_code == 0)
        visit<T>(args.x, args.type,
                 [&](const auto* x) { load_tile<T>(block, memory.rows, x, row_offset, first, args.dim); });
      block.sync();
      const int depth = args.dim - first < kDepth ? int(args.dim - first) : kDepth;
#pragma unroll 4
      for (int d = 0; d < depth; ++d) {
        const auto codes = memory.codes.template pack<kThreadCodes>(d * kTileStride + first_lane);
        Pack<T, 4> rows[kThreadRows / 4];
#pragma unroll
        for (int p = 0; p < kThreadRows / 4; ++p)
          rows[p] = memory.rows.template pack<4>(d * kTileStride + first_place + 4 * p);
#pragma unroll
        for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
          for (int c = 0; c < kThreadCodes; ++c) {
            const T difference = rows[r / 4].at[r % 4] - codes.at[c];
            sum[r][c] = fused(difference, difference, sum[r][c]);
          }
      }
    }
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
      for (int c = 0; c < kThreadCodes; ++c)
        if (sum[r][c] < best[r]) best[r] = sum[r][c], code[r] = int(first_code) + first_lane + c;
  }

#pragma unroll
  for (int r = 0; r < kThreadRows; ++r) {
#pragma unroll
    for (int lanes = kCodeLanes / 2; lanes > 0; lanes /= 2) {
      const T other = block.warp_xor(best[r], lanes);
      const int other_code = block.warp_xor(code[r], lanes);
      if (other < best[r] || (other == best[r] && other_code < code[r]))
        best[r] = other, code[r] = other_code;
    }
    if (first_lane == 0) found(first_place + r, code[r]);
  }
}

// Rows of x, of the codebook and of the results may be read and written n components at a time.
template <int n, class T, class X>
SOLID_DEVICE bool in_packs(const NearestCodeCuda& args, const X* x) {
  return args.dim % n == 0 && args.x_stride % n == 0 && aligned_to_packs<n>(x) &&
         aligned_to_packs<n>(static_cast<const T*>(args.codebook)) &&
         aligned_to_packs<n>(static_cast<const X*>(args.quantized));
}

constexpr int kFinishLanes = 8;  // share a row: in packs of four floats, 128 bytes of it at a time
constexpr int kFinishRows = 2;   // of a lane, whose reads are under way together: eight of a warp

template <int n, class T, class Block, class X, class CodeOf>
SOLID_DEVICE void finish_in_packs(Block& block, const NearestCodeCuda& args, const X* x, int64_t first_row,
                                  int count, const CodeOf& code_of) {
  constexpr int kBeside = 32 / kFinishLanes;
  const T* codebook = static_cast<const T*>(args.codebook);
  X* quantized = static_cast<X*>(args.quantized);
  T* sums = static_cast<T*>(args.sums);
  const int lane = block.lane() % kFinishLanes;
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kBeside * kFinishRows) {
    bool present[kFinishRows];
    int64_t row[kFinishRows], code[kFinishRows];
    T distance[kFinishRows];
#pragma unroll
    for (int r = 0; r < kFinishRows; ++r) {
      const int place = begin + r * kBeside + block.lane() / kFinishLanes;
      present[r] = place < count;
      row[r] = first_row + place;
      code[r] = present[r] ? code_of(place) : -1;
      distance[r] = 0;
    }
#pragma unroll 1
    for (int64_t d = lane * n; d < args.dim; d += kFinishLanes * n) {
      Pack<T, n> entry[kFinishRows] = {};
      Pack<X, n> from[kFinishRows] = {};
#pragma unroll
      for (int r = 0; r < kFinishRows; ++r) {
        if (code[r] < 0) continue;
        entry[r] = load_pack<n>(codebook + code[r] * args.dim + d);
        from[r] = load_pack<n>(x + row[r] * args.x_stride + d);
      }
#pragma unroll
      for (int r = 0; r < kFinishRows; ++r) {
        if (!present[r]) continue;
        Pack<X, n> to;
#pragma unroll
        for (int c = 0; c < n; ++c) {
          narrow(entry[r].at[c], to.at[c]);
          const T difference = widen(from[r].at[c]) - entry[r].at[c];
          distance[r] = fused(difference, difference, distance[r]);
        }
        store_pack<n>(quantized + row[r] * args.dim + d, to);
      }
    }
#pragma unroll
    for (int r = 0; r < kFinishRows; ++r) {
#pragma unroll
      for (int lanes = 1; lanes < kFinishLanes; lanes *= 2) distance[r] += block.warp_xor(distance[r], lanes);
      if (present[r] && lane == 0) {
        args.index[row[r]] = code[r] < 0 ? 0 : code[r];
        static_cast<T*>(args.distance)[row[r]] = distance[r];
      }
      const bool counted = code[r] >= 0 && distance[r] - distance[r] == T(0);  // neither NaN nor infinite
      if (args.counts == nullptr || !counted) continue;
      if (lane == 0) block.add(args.counts + code[r], int64_t(1));
      if (sums == nullptr) continue;
      for (int64_t d = lane; d < args.dim; d += kFinishLanes)
        block.add(sums + code[r] * args.dim + d, widen(x[row[r] * args.x_stride + d]));
    }
  }
}

// Writes the results of rows first_row .. + count - 1, by one warp: the chosen code, code_of(row -
// first_row), negative for a masked row, and its distance measured directly.
template <class T, class Block, class CodeOf>
SOLID_DEVICE void finish_rows(Block& block, const NearestCodeCuda& args, int64_t first_row, int count,
                              const CodeOf& code_of) {
  constexpr int n = 16 / sizeof(T);
  visit<T>(args.x, args.type, [&](const auto* x) {
    if (in_packs<n, T>(args, x))
      finish_in_packs<n, T>(block, args, x, first_row, count, code_of);
    else
      finish_in_packs<1, T>(block, args, x, first_row, count, code_of);
  });
}

// How many of the `most` rows from `first` on there are.
SOLID_DEVICE int rows_from(const NearestCodeCuda& args, int64_t first, int most) {
  return first >= args.rows ? 0 : args.rows - first < most ? int(args.rows - first) : most;
}

template <class T>
struct ExactSearch {
  static constexpr int kThreads = kSearchThreads;
  static constexpr int kBlocks = sizeof(T) == 8 ? 2 : 4;
  static constexpr int64_t kSharedBytes = 2 * kTileSize * sizeof(T) + 2 * kTile * sizeof(int);
  using Args = NearestCodeCuda;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    SearchMemory<T, Block> memory{
        block.template shared<T>(kTileSize),
        block.template shared<T>(kTileSize),
        block.template shared<int>(kTile),
    };
    auto codes = block.template shared<int>(kTile);
    const int64_t first_row = block.index() * kTile;
    if (block.thread() < kTile) {
      const int64_t row = first_row + block.thread();
      const bool valid = row < args.rows && (args.mask == nullptr || args.mask[row]);
      memory.taken.set(block.thread(), valid ? block.thread() : -1);
      codes.set(block.thread(), -1);
    }
    block.sync();
    const int lane = block.lane();
    const bool any = block.warp_vote(memory.taken[lane] >= 0 || memory.taken[lane + 32] >= 0) != 0;
    if (any)
      search_tile<T>(block, args, memory, first_row, [&](int place, int code) {
        if (memory.taken[place] >= 0) codes.set(place, code);
      });
    block.sync();
    constexpr int kEach = kTile / Block::kWarps;
    const int own = block.warp() * kEach;
    finish_rows<T>(block, args, first_row + own, rows_from(args, first_row + own, kEach),
                   [&](int place) { return codes[own + place]; });
  }
};

}  // namespace solid
