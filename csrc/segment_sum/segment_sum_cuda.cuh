// Sums of rows by code: in no fixed order, by atomic additions; or, from rows sorted by code, in their order.
#pragma once

#include "cuda/numbers.h"
#include "segment_sum/segment_sum_cuda.h"

namespace solid {

constexpr int kSumThreads = 128;
constexpr int kSumRows = 32;  // of a block

template <class T>
struct AtomicSegmentSum {
  static constexpr int kThreads = kSumThreads;
  static constexpr int kBlocks = 8;
  using Args = SegmentSumCuda;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    const int64_t first = block.index() * kSumRows;
    const int64_t last = first + kSumRows < args.rows ? first + kSumRows : args.rows;
    T* sums = static_cast<T*>(args.sums) + block.index() % args.copies * args.num_codes * args.dim;
    for (int64_t row = first + block.warp(); row < last; row += Block::kWarps) {
      const int64_t code = args.index[row];
      const bool counted = args.mask == nullptr || args.mask[row];
      if (!counted || code < 0 || code >= args.num_codes) continue;
      T* to = sums + code * args.dim;
      for (int64_t d = block.lane(); d < args.dim; d += 32)
        block.add(to + d, load_element<T>(args.values, args.type, row * args.stride + d));
    }
  }
};

// A warp sums 32 components of one code. Rows are added one after the other, but fetched ahead.
template <class T>
struct OrderedSegmentSum {
  static constexpr int kThreads = kSumThreads;
  static constexpr int kBlocks = 8;
  using Args = SegmentSumCuda;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    const int64_t strips = (args.dim + 31) / 32;
    const int64_t task = block.index() * Block::kWarps + block.warp();
    const int64_t code = task / strips, d = task % strips * 32 + block.lane();
    if (code >= args.num_codes || d >= args.dim) return;
    T sum = 0;
    visit<T>(args.values, args.type, [&](const auto* values) {
#pragma unroll 8
      for (int64_t i = args.starts[code]; i < args.starts[code + 1]; ++i)
        sum += widen(values[args.order[i] * args.stride + d]);
    });
    static_cast<T*>(args.sums)[code * args.dim + d] = sum;
  }
};

}  // namespace solid
