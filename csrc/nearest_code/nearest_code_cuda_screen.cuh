// The screened search: matrix units find, at half precision, the few codes that can be nearest.
//
// With x~, c~ rounded to bfloat16, n = ||c~||, lost = ||c - c~||, e = ||x - x~|| and h = ||c||^2 / 2,
//   |<x, c> - <x~, c~>| <= e n + ||x|| lost                                        (Cauchy and Schwarz).
// The matrix units return S = h - <x~, c~> up to rounding. A step adds 16 products to a sum, each cut off at
// 2^-23 of the largest term T <= h + 1.01 ||x|| n, and cuts the result: 18 T 2^-23 at most, so that D / 16
// steps lose less than (1.2 D + 18) T 2^-23; h itself, a chain of D fused operations, less than
// (0.5 D + 1) h 2^-23. With eta = (D + 32) 2^-22 both, and the few operations on the bounds themselves, are
// covered: the true cost F = h - <x, c> has
//   |S - F| <= margin = e n + ||x|| (lost + eta n) + eta h + 2^-100,
// where n, lost and h may be replaced by their largest values in a group of codes. (Norms are made 1 % larger
// than computed, and 2^-50, which covers their own rounding and underflow.)
//
// What decides is the sum of squared differences as nearest_code_cuda_search.cuh computes it, within (D + 3)
// u of the squared distance, u = 2^-24. So a code can win by it that costs (D + 8) u (||x||^2 + 2 ||x|| n + 2
// h) more than the cheapest: that, too, is in the margin, its first term a row's, the others by a larger eta
// = (1.5 D + 40) 2^-22.
//
// While the codes stream by, a row keeps U = min (S + margin), above the cost of some code, and lists every
// code with S - margin <= U. U only falls, so the nearest code, and all that tie with it, are listed.
// In the end those with S - margin <= U are left: one alone is the nearest, several are compared by
// their differences. A row with more than the list holds, with a NaN, longer than 1e18 or further than that
// from all codes is searched exactly.
//
// A warp owns 32 rows (two tiles of 16) and meets 64 codes at a time: 64 sums a lane. Codes come through two
// buffers of 64 codes x 64 components by asynchronous copies, one barrier each.
#pragma once

#include <type_traits>

#include "cuda/numbers.h"
#include "nearest_code/nearest_code_cuda_search.cuh"

namespace solid {

constexpr int kGroup = 64;        // codes that meet a warp's rows at a time, and share a bound
constexpr int kChunkWords = 32;   // pairs of components in a buffer
constexpr int kChunkStride = 36;  // eight rows of four words touch all banks
constexpr int kScreenRows = 128;  // of a block
constexpr int kWarpRows = 32;
constexpr int kSlots = 10;     // codes listed for a row; D = 256 leaves room for no more in 99 KB
constexpr int kTidySlots = 5;  // beyond these a list is tidied
constexpr int64_t kLeastShared = 99 * 1024;  // what a block has on every architecture from sm_80 on
constexpr float kLongest = 1e18f;
constexpr float kFurthest = 1e36f;  // as a cost: a code whose norm overflows cannot be as near
constexpr float kLargest = 1e38f;   // a margin more is still below infinity
constexpr float kTiny = 0x1p-50f;

constexpr int kLeftCount = 2 * kTile;

constexpr int kMasked = -1;
constexpr int kGivenUp = -2;

struct GroupBounds {
  float norm, lost, slack, unused;
};

// Pairs of a row, to whole steps of the matrix units (16 components).
SOLID_BOTH int64_t screen_words(int64_t dim) { return (dim + 15) / 16 * 8; }
SOLID_BOTH int64_t screen_groups(int64_t num_codes) { return (num_codes + kGroup - 1) / kGroup; }

// The codebook as the matrix units take it, in the workspace: pairs [groups x 64, words], then bounds
// [groups], then half norms [groups x 64], +infinity for codes that cannot be chosen.
struct PackedCodes {
  uint32_t* pairs;
  GroupBounds* bounds;
  float* halves;
};

SOLID_DEVICE PackedCodes packed_codes(const NearestCodeCuda& args) {
  const int64_t groups = screen_groups(args.num_codes);
  PackedCodes packed;
  packed.pairs = static_cast<uint32_t*>(args.workspace);
  packed.bounds = reinterpret_cast<GroupBounds*>(packed.pairs + groups * kGroup * screen_words(args.dim));
  packed.halves = reinterpret_cast<float*>(packed.bounds + groups);
  return packed;
}

SOLID_DEVICE float larger(float value) { return value * 1.01f + kTiny; }

// Packs one group of codes.
struct PackCodes {
  static constexpr int kThreads = kSearchThreads;
  static constexpr int kBlocks = 4;
  static constexpr int64_t kSharedBytes = (kTileSize + 4 * kGroup) * sizeof(float);
  using Args = NearestCodeCuda;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    auto tile = block.template shared<float>(kTileSize);
    auto halves = block.template shared<float>(kGroup);
    auto norms = block.template shared<float>(kGroup);
    auto losses = block.template shared<float>(kGroup);
    const int t = block.thread();
    const PackedCodes packed = packed_codes(args);
    const int64_t first_code = block.index() * kGroup;
    const int64_t words = screen_words(args.dim);
    const float* codebook = static_cast<const float*>(args.codebook);
    const auto offset = [&](int lane) {
      return first_code + lane < args.num_codes ? (first_code + lane) * args.dim : int64_t(-1);
    };
    float square = 0, rounded = 0, lost = 0;
    for (int64_t first = 0; first < args.dim; first += kDepth) {
      block.sync();
      load_tile<float>(block, tile, codebook, offset, first, args.dim);
      block.sync();
      if (t < kGroup)
        for (int d = 0; d < kDepth; ++d) {
          const float component = tile[d * kTileStride + t];
          const float narrow = to_float(to_bf16(component));
          square = fused(component, component, square);
          rounded = fused(narrow, narrow, rounded);
          lost = fused(component - narrow, component - narrow, lost);
        }
    }
    if (t < kGroup) {
      const float half = square * 0.5f;
      const bool usable = first_code + t < args.num_codes && half < infinity<float>();
      halves.set(t, usable ? half : infinity<float>());
      norms.set(t, usable ? larger(sqrtf(rounded)) : 0);
      losses.set(t, usable ? larger(sqrtf(lost)) : 0);
      packed.halves[first_code + t] = usable ? half : infinity<float>();
    }
    for (int64_t first = 0; first < 2 * words; first += kDepth) {
      block.sync();
      load_tile<float>(block, tile, codebook, offset, first, args.dim);
      block.sync();
      for (int i = t; i < kGroup * kDepth / 2; i += kThreads) {
        const int code = i / (kDepth / 2), word = i % (kDepth / 2);
        if (first / 2 + word >= words) continue;
        const bool usable = halves[code] < infinity<float>();
        const float low = usable ? -tile[2 * word * kTileStride + code] : 0;
        const float high = usable ? -tile[(2 * word + 1) * kTileStride + code] : 0;
        packed.pairs[(first_code + code) * words + first / 2 + word] = pair_of(to_bf16(low), to_bf16(high));
      }
    }
    if (t == 0) {
      const float eta = float(3 * args.dim + 80) * 0x1p-23f;
      GroupBounds bounds{0, 0, 0, 0};
      for (int code = 0; code < kGroup; ++code) {
        if (!(halves[code] < infinity<float>())) continue;
        bounds.norm = fmaxf(bounds.norm, norms[code]);
        bounds.lost = fmaxf(bounds.lost, losses[code]);
        bounds.slack = fmaxf(bounds.slack, halves[code]);
      }
      bounds.lost = bounds.lost + eta * bounds.norm;
      bounds.slack = eta * bounds.slack + 0x1p-100f;
      packed.bounds[block.index()] = bounds;
    }
  }
};

struct ScreenedSearch {
  static constexpr int kThreads = kSearchThreads;
  static constexpr int kBlocks = 3;
  using Args = NearestCodeCuda;

  static SOLID_BOTH int64_t row_words(int64_t dim) {
    const int64_t words = kScreenRows * (screen_words(dim) + 4);
    return words > 2 * kTileSize ? words : 2 * kTileSize;  // the exact search takes the same memory
  }
  static SOLID_BOTH int64_t shared_bytes(int64_t dim) {
    return 4 * (row_words(dim) + 2 * kGroup * kChunkStride + 2 * kGroup + kScreenRows * (2 * kSlots + 7) +
                2 * kTile + 4);
  }

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    Screen<Block>(block, args).run();
  }

  template <class Block>
  struct Screen {
    template <class T>
    using Shared = typename Block::template Shared<T>;

    SOLID_DEVICE Screen(Block& block, const Args& args)
        : block(block),
          args(args),
          packed(packed_codes(args)),
          words(int(screen_words(args.dim))),
          chunks((words + kChunkWords - 1) / kChunkWords),
          first_row(block.index() * kScreenRows),
          row_pairs(block.template shared<uint32_t>(int(row_words(args.dim)))),
          code_pairs(block.template shared<uint32_t>(2 * kGroup * kChunkStride)),
          halves(block.template shared<float>(2 * kGroup)),
          listed_bound(block.template shared<float>(kScreenRows * kSlots)),
          listed_code(block.template shared<int>(kScreenRows * kSlots)),
          listed(block.template shared<int>(kScreenRows)),
          upper(block.template shared<float>(kScreenRows)),
          norms(block.template shared<float>(4 * kScreenRows)),
          found(block.template shared<int>(kScreenRows)),
          left(block.template shared<int>(2 * kTile + 4)) {}

    SOLID_DEVICE void run() {
      prepare_rows();
      sweep();
      choose();
      search_left();
      const int own = block.warp() * kWarpRows;
      finish_rows<float>(block, args, first_row + own, rows_from(args, first_row + own, kWarpRows),
                         [&](int place) { return found[own + place]; });
    }

   private:
    // Rows of this lane: 16 m + 8 h + lane / 4 of the warp's, for r = 2 m + h; it holds columns 2 (lane % 4),
    // + 1.
    SOLID_DEVICE int own_row(int r) const { return block.warp() * kWarpRows + 8 * r + block.lane() / 4; }

    // x~ and its norms into shared memory, by the four lanes that share a row.
    SOLID_DEVICE void prepare_rows() {
      if (block.thread() == 0) left.set(kLeftCount, 0);
      listed.set(block.thread(), 0);
#pragma unroll 1  // less code, and no registers lost to it
      for (int r = 0; r < 4; ++r) {
        const int64_t row = first_row + own_row(r);
        const bool valid = row < args.rows && (args.mask == nullptr || args.mask[row]);
        float square = 0, lost = 0;
        visit<float>(args.x, args.type, [&](const auto* x) {
          if (in_packs<4, float>(args, x))
            round_row<4>(x, row, own_row(r), valid, square, lost);
          else
            round_row<2>(x, row, own_row(r), valid, square, lost);
        });
        square += block.warp_xor(square, 1), square += block.warp_xor(square, 2);
        lost += block.warp_xor(lost, 1), lost += block.warp_xor(lost, 2);
        const bool usable = valid && square <= kLongest * kLongest;
        if (block.lane() % 4 != 0) continue;
        const Pack<float, 4> of_row{larger(sqrtf(lost)), larger(sqrtf(square)),
                                    float(args.dim + 8) * 0x1p-24f * square, 0};
        norms.template set_pack<4>(4 * own_row(r), usable ? of_row : Pack<float, 4>{0, 0, 0, 0});
        found.set(own_row(r), usable ? 0 : valid ? kGivenUp : kMasked);
      }
      block.sync_warp();
#pragma unroll
      for (int r = 0; r < 4; ++r) least_upper[r] = found[own_row(r)] == 0 ? kLargest : -infinity<float>();
    }

    // A row's pairs, two or four components at a time, and this lane's share of its two sums.
    template <int n, class X>
    SOLID_DEVICE void round_row(const X* x, int64_t row, int to, bool valid, float& square, float& lost) {
#pragma unroll 1
      for (int w = block.lane() % 4 * (n / 2); w < words; w += 2 * n) {
        const int64_t d = 2 * int64_t(w);
        Pack<X, n> from = {};
        if constexpr (n == 4) {
          if (valid && d < args.dim) from = load_pack<n>(x + row * args.x_stride + d);
        } else {
          if (valid && d < args.dim) from.at[0] = x[row * args.x_stride + d];
          if (valid && d + 1 < args.dim) from.at[1] = x[row * args.x_stride + d + 1];
        }
#pragma unroll
        for (int c = 0; c < n; c += 2) {
          const float low = widen(from.at[c]), high = widen(from.at[c + 1]);
          const Bf16 narrow_low = to_bf16(low), narrow_high = to_bf16(high);
          const float lost_low = low - to_float(narrow_low), lost_high = high - to_float(narrow_high);
          square = fused(low, low, fused(high, high, square));
          lost = fused(lost_low, lost_low, fused(lost_high, lost_high, lost));
          row_pairs.set(to * (words + 4) + w + c / 2, pair_of(narrow_low, narrow_high));
        }
      }
    }

    // Starts the copies of one chunk of one group.
    SOLID_DEVICE void fetch(int group, int chunk, int buffer) {
      const int count = words - chunk * kChunkWords < kChunkWords ? words - chunk * kChunkWords : kChunkWords;
      const uint32_t* from = packed.pairs + int64_t(group) * kGroup * words + chunk * kChunkWords;
      switch (count / 4) {  // known to the compiler, so that no address needs a division
        case 2:
          copy_chunk<2>(from, buffer);
          break;
        case 4:
          copy_chunk<4>(from, buffer);
          break;
        case 6:
          copy_chunk<6>(from, buffer);
          break;
        default:
          copy_chunk<8>(from, buffer);
      }
      if (chunk == 0 && block.thread() < kGroup / 4)
        block.template copy_async<4>(halves, group % 2 * kGroup + 4 * block.thread(),
                                     packed.halves + int64_t(group) * kGroup + 4 * block.thread());
      block.commit_copies();
    }

    // 64 codes' share of a chunk: so many pieces of four words each.
    template <int pieces>
    SOLID_DEVICE void copy_chunk(const uint32_t* from, int buffer) {
#pragma unroll
      for (int step = 0; step < kGroup * pieces / Block::kThreads; ++step) {
        const int i = step * Block::kThreads + block.thread();
        const int code = i / pieces, piece = i % pieces;
        block.template copy_async<4>(code_pairs, (buffer * kGroup + code) * kChunkStride + 4 * piece,
                                     from + int64_t(code) * words + 4 * piece);
      }
    }

    SOLID_DEVICE void sweep() {
      const int groups = int(screen_groups(args.num_codes));
      float sums[2][8][4];
      fetch(0, 0, 0);
      int buffer = 0;
      for (int group = 0; group < groups; ++group)
        for (int chunk = 0; chunk < chunks; ++chunk, buffer ^= 1) {
          block.template wait_copies<0>();
          block.sync();  // this chunk is there for all, and nobody reads the other buffer any more
          const bool ends = chunk + 1 == chunks;
          if (!ends || group + 1 < groups) fetch(group + ends, ends ? 0 : chunk + 1, buffer ^ 1);
          if (chunk == 0) start_sums(group % 2, sums);
          multiply(chunk, buffer, sums);
          if (chunk + 1 == chunks) meet(group, sums);
        }
    }

    SOLID_DEVICE void start_sums(int parity, float (&sums)[2][8][4]) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const auto pair = halves.template pack<2>(parity * kGroup + 8 * n + block.lane() % 4 * 2);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][n][i] = pair.at[i % 2];
      }
    }

    SOLID_DEVICE void multiply(int chunk, int buffer, float (&sums)[2][8][4]) {
      const int lane = block.lane();
      const int rest = words - chunk * kChunkWords;
      const int steps = (rest < kChunkWords ? rest : kChunkWords) / 8;
      // Where this lane's row of the four matrices of a load begins: block.cuh, warp_load_matrices.
      const int row =
          (block.warp() * kWarpRows + lane % 16) * (words + 4) + chunk * kChunkWords + lane / 16 * 4;
      const int code = (buffer * kGroup + lane / 16 * 8 + lane % 8) * kChunkStride + lane / 8 % 2 * 4;
#pragma unroll 2  // the compiler would take four, and registers spill on sm_100
      for (int step = 0; step < steps; ++step) {
        uint32_t rows[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m)
          block.warp_load_matrices(row_pairs, row + 16 * m * (words + 4) + 8 * step, rows[m]);
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
          uint32_t codes[4];
          block.warp_load_matrices(code_pairs, code + 8 * n * kChunkStride + 8 * step, codes);
          const uint32_t first[2] = {codes[0], codes[1]}, second[2] = {codes[2], codes[3]};
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            block.warp_product_bf16(sums[m][n], rows[m], first, sums[m][n]);
            block.warp_product_bf16(sums[m][n + 1], rows[m], second, sums[m][n + 1]);
          }
        }
      }
    }

    // The group's 64 codes meet the warp's 32 rows.
    SOLID_DEVICE void meet(int group, const float (&sums)[2][8][4]) {
      const GroupBounds bounds = packed.bounds[group];
      bool any = false;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float own_least = infinity<float>();
#pragma unroll
        for (int n = 0; n < 8; ++n)
          own_least = fminf(own_least, fminf(sums[r / 2][n][r % 2 * 2], sums[r / 2][n][r % 2 * 2 + 1]));
        float least = fminf(own_least, block.warp_xor(own_least, 1));
        least = fminf(least, block.warp_xor(least, 2));
        const int row = own_row(r);
        const auto of_row = norms.template pack<4>(4 * row);
        const float margin =
            fused(of_row.at[0], bounds.norm, fused(of_row.at[1], bounds.lost, bounds.slack + of_row.at[2]));
        least_upper[r] = fminf(least_upper[r], least + margin);
        const float limit = least_upper[r] + margin;
        if (block.warp_vote(least <= limit) == 0) continue;
        any = true;
        if (block.lane() % 4 == 0) upper.set(row, least_upper[r]);
        if (!(own_least <= limit)) continue;
        const int first = group * kGroup + block.lane() % 4 * 2;
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float sum = sums[r / 2][n][r % 2 * 2 + i];
            if (sum <= limit) list(row, first + 8 * n + i, sum - margin);
          }
      }
      if (!any) return;
      block.sync_warp();
      const int row = block.thread();  // one row a lane from here on
      if (listed[row] > kTidySlots) tidy(row);
      block.sync_warp();
    }

    SOLID_DEVICE void list(int row, int code, float bound) {
      const int slot = listed.add(row, 1);
      if (slot >= kSlots) return;  // the count remembers
      listed_code.set(row * kSlots + slot, code);
      listed_bound.set(row * kSlots + slot, bound);
    }

    // Leaves those of a row's list that can still be nearest; returns their number, more than kSlots if some
    // were lost.
    SOLID_DEVICE int tidy(int row) {
      const int count = listed[row];
      if (count > kSlots) return count;
      const float limit = upper[row];
      int kept = 0;
      for (int slot = 0; slot < count; ++slot) {
        const float bound = listed_bound[row * kSlots + slot];
        const int code = listed_code[row * kSlots + slot];
        if (!(bound <= limit)) continue;
        listed_bound.set(row * kSlots + kept, bound);
        listed_code.set(row * kSlots + kept, code);
        ++kept;
      }
      listed.set(row, kept);
      return kept;
    }

    // One row a lane: the nearest of the codes listed for it.
    SOLID_DEVICE void choose() {
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if (block.lane() % 4 == 0) upper.set(own_row(r), least_upper[r]);
      block.sync_warp();
      const int row = block.thread();
      if (found[row] == 0) {
        const int count = tidy(row);
        if (count > kSlots || count == 0 || upper[row] > kFurthest)
          found.set(row, kGivenUp);
        else
          found.set(row, count == 1 ? listed_code[row * kSlots] : nearest_listed(row, count));
      }
      if (found[row] == kGivenUp) left.set(left.add(kLeftCount, 1), row);
    }

    SOLID_DEVICE int nearest_listed(int row, int count) {
      float best = infinity<float>();
      int best_code = 0;
      for (int slot = 0; slot < count; ++slot) {
        const int code = listed_code[row * kSlots + slot];
        const float* entry = static_cast<const float*>(args.codebook) + code * args.dim;
        const float sum = squared_difference(row, entry);
        if (sum < best || (sum == best && code < best_code)) best = sum, best_code = code;
      }
      return best_code;
    }

    // Component by component, as the exact search adds.
    SOLID_DEVICE float squared_difference(int row, const float* entry) {
      float sum = 0;
      visit<float>(args.x, args.type, [&](const auto* x) {
        const auto walk = [&](auto width) {
          constexpr int n = decltype(width)::value;
          const auto* from = x + (first_row + row) * args.x_stride;
#pragma unroll 4
          for (int64_t d = 0; d < args.dim; d += n) {
            const auto some = load_pack<n>(from + d);
            const auto others = load_pack<n>(entry + d);
#pragma unroll
            for (int c = 0; c < n; ++c) {
              const float difference = widen(some.at[c]) - others.at[c];
              sum = fused(difference, difference, sum);
            }
          }
        };
        if (in_packs<4, float>(args, x))
          walk(std::integral_constant<int, 4>());
        else
          walk(std::integral_constant<int, 1>());
      });
      return sum;
    }

    // The rows given up, exactly, in the memory of the pairs.
    SOLID_DEVICE void search_left() {
      block.sync();
      const int count = left[kLeftCount];
      for (int first = 0; first < count; first += kTile) {
        auto values = row_pairs.template as<float>();
        auto taken = left.part(first, kTile);
        if (block.thread() < kTile && first + block.thread() >= count) taken.set(block.thread(), -1);
        SearchMemory<float, Block> memory{values.part(0, kTileSize), values.part(kTileSize, kTileSize),
                                          taken};
        search_tile<float>(block, args, memory, first_row, [&](int place, int code) {
          if (taken[place] >= 0) found.set(taken[place], code);
        });
        block.sync();
      }
    }

    Block& block;
    const Args& args;
    const PackedCodes packed;
    const int words, chunks;
    const int64_t first_row;
    Shared<uint32_t> row_pairs;   // [128][words + 4], bfloat16
    Shared<uint32_t> code_pairs;  // [2][64][kChunkStride]
    Shared<float> halves;         // [2][64], of two groups
    Shared<float> listed_bound;   // [128][kSlots]: S - margin
    Shared<int> listed_code;
    Shared<int> listed;    // [128]: how many
    Shared<float> upper;   // [128]: U
    Shared<float> norms;   // [128][4]: e, ||x||, (D + 8) u ||x||^2
    Shared<int> found;     // [128]: the code, kMasked or kGivenUp
    Shared<int> left;      // rows given up
    float least_upper[4];  // U of the rows own_row(r)
  };
};

}  // namespace solid
