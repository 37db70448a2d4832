// Kernel bodies of catalogue_cross_entropy; catalogue_cross_entropy_cuda.h is the contract.
//
// A block of 128 threads computes logits tile by tile, 64 rows by 64 items; a thread has eight rows and four
// items of it, the sixteen lanes that share its rows have the others. Operands pass through shared memory,
// sixteen components at a time, turned so that a thread reads its rows and its items as runs.
#pragma once

#include "catalogue_cross_entropy/catalogue_cross_entropy_cuda.h"

namespace solid {

SOLID_DEVICE float catalogue_exp(float value) { return expf(value); }
SOLID_DEVICE double catalogue_exp(double value) { return exp(value); }
SOLID_DEVICE float catalogue_log(float value) { return logf(value); }
SOLID_DEVICE double catalogue_log(double value) { return log(value); }

template <class T>
SOLID_DEVICE T lowest() {
  return sizeof(T) == 4 ? T(-3.4028234e38) : T(-1.7976931348623157e308);
}

template <class T>
SOLID_DEVICE T larger(T a, T b) {
  return a > b ? a : b;
}

// Where in the workspace what lies.
template <class T>
struct CatalogueWorkspace {
  T *largest, *sums;                 // [splits][B]
  T *target_logit, *shift, *factor;  // [B]
  T* partial;                        // [splits][B][D]

  SOLID_DEVICE explicit CatalogueWorkspace(const CatalogueCrossEntropyCuda& call) {
    const int64_t splits = catalogue_splits(call.rows, call.items);
    largest = static_cast<T*>(call.workspace);
    sums = largest + splits * call.rows;
    target_logit = sums + splits * call.rows;
    shift = target_logit + call.rows;
    factor = shift + call.rows;
    partial = factor + call.rows;
  }
};

template <class T, class Block>
class CatalogueTile {
 public:
  using Numbers = typename Block::template Shared<T>;
  static constexpr int kTile = int(kCatalogueTile), kDepth = 16;
  static constexpr int kRows = 8, kItems = 4;       // of a thread
  static constexpr int kRun = 16 / int(sizeof(T));  // read at once
  static constexpr int kPitch = kTile + 4;
  static constexpr int kOperands = 2 * kDepth * kPitch;

  SOLID_DEVICE CatalogueTile(Block& block, const CatalogueCrossEntropyCuda& call)
      : block_(block),
        call_(call),
        operands_(block.template shared<T>(kOperands)),
        row_(block.thread() / 16 * kRows),
        item_(block.thread() % 16 * kItems) {}

  SOLID_DEVICE int row() const { return row_; }  // the thread's first one in the tile
  SOLID_DEVICE int item() const { return item_; }

  // n numbers of shared memory from `at` on.
  template <int n>
  static SOLID_DEVICE void read(const Numbers& from, int at, T (&to)[n]) {
#pragma unroll
    for (int i = 0; i < n; i += kRun) {
      const auto run = from.template pack<kRun>(at + i);
#pragma unroll
      for (int j = 0; j < kRun; ++j) to[i + j] = run.at[j];
    }
  }

  // sum[m][n] += a[m] b[n]
  static SOLID_DEVICE void add_products(const T (&a)[kRows], const T (&b)[kItems], T (&sum)[kRows][kItems]) {
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
      for (int n = 0; n < kItems; ++n) sum[m][n] = fused(a[m], b[n], sum[m][n]);
  }

  // The logits of the thread's rows and items in the tile that begins at `first_row` and `first_item`;
  // -infinity for what is no item.
  SOLID_DEVICE void logits(int64_t first_row, int64_t first_item, T (&sum)[kRows][kItems]) {
    const int dim = int(call_.dim);
#pragma unroll
    for (int n = 0; n < kItems; ++n) {
      const int64_t item = first_item + item_ + n;
      T start = item < call_.items ? T(0) : -infinity<T>();
      if (item < call_.items && call_.bias != nullptr) start = load_element<T>(call_.bias, call_.type, item);
#pragma unroll
      for (int m = 0; m < kRows; ++m) sum[m][n] = start;
    }
    for (int d = 0; d < dim; d += kDepth) {
      block_.sync();
      load(call_.state, call_.rows, first_row, d, 0);
      load(call_.table, call_.items, first_item, d, kDepth * kPitch);
      block_.sync();
      const int depth = dim - d < kDepth ? dim - d : kDepth;
      for (int k = 0; k < depth; ++k) {
        T a[kRows], b[kItems];
        read(operands_, k * kPitch + row_, a);
        read(operands_, (kDepth + k) * kPitch + item_, b);
        add_products(a, b, sum);
      }
    }
    if (first_item + kTile > call_.items)  // where a component that is not finite would have made it NaN
#pragma unroll
      for (int n = 0; n < kItems; ++n)
        if (first_item + item_ + n >= call_.items)
#pragma unroll
          for (int m = 0; m < kRows; ++m) sum[m][n] = -infinity<T>();
  }

 private:
  // Components d .. d + 15 of 64 rows of [count, D], turned: zeros past the last row and component.
  SOLID_DEVICE void load(const void* from, int64_t count, int64_t first, int d, int at) {
    for (int i = block_.thread(); i < kTile * kDepth; i += Block::kThreads) {
      const int row = i / kDepth, k = i % kDepth;
      const bool present = first + row < count && d + k < call_.dim;
      operands_.set(at + k * kPitch + row,
                    present ? load_element<T>(from, call_.type, (first + row) * call_.dim + d + k) : T(0));
    }
  }

  Block& block_;
  const CatalogueCrossEntropyCuda& call_;
  Numbers operands_;
  const int row_, item_;
};

// The tiles of a split: first .. last - 1.
struct CatalogueRange {
  int64_t first, last;
  SOLID_DEVICE CatalogueRange(int64_t tiles, int64_t splits, int64_t split)
      : first(tiles * split / splits), last(tiles * (split + 1) / splits) {}
};

// Of each row, over the items of a split: the largest logit and the sum of exp(logit - largest); and the
// target's logit.
template <class T>
struct CatalogueSums {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = sizeof(T) == 8 ? 2 : 3;
  using Args = CatalogueCrossEntropyCuda;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& call) {
    using Tile = CatalogueTile<T, Block>;
    constexpr int kRows = Tile::kRows, kItems = Tile::kItems;
    Tile tile(block, call);
    const CatalogueWorkspace<T> to(call);
    const int64_t splits = catalogue_splits(call.rows, call.items), split = block.index() % splits;
    const int64_t first_row = block.index() / splits * kCatalogueTile;
    const CatalogueRange range(catalogue_tiles(call.items), splits, split);
    T largest[kRows], sums[kRows];
    int64_t target[kRows];
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const int64_t b = first_row + tile.row() + m;
      largest[m] = lowest<T>(), sums[m] = 0, target[m] = b < call.rows ? call.target[b] : -1;
    }
    for (int64_t at = range.first; at < range.last; ++at) {
      T logits[kRows][kItems];
      tile.logits(first_row, at * kCatalogueTile, logits);
      const int64_t item = at * kCatalogueTile + tile.item();
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        T top = largest[m];
#pragma unroll
        for (int n = 0; n < kItems; ++n) {
          top = larger(logits[m][n], top);
          if (item + n == target[m] && item + n < call.items)
            to.target_logit[first_row + tile.row() + m] = logits[m][n];
        }
        top = across(block, top, larger<T>);
        T sum = 0;
#pragma unroll
        for (int n = 0; n < kItems; ++n) sum += catalogue_exp(logits[m][n] - top);
        sum = across(block, sum, [](T a, T b) { return a + b; });
        sums[m] = sums[m] * catalogue_exp(largest[m] - top) + sum;
        largest[m] = top;
      }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const int64_t b = first_row + tile.row() + m;
      if (tile.item() == 0 && b < call.rows) {
        to.largest[split * call.rows + b] = largest[m];
        to.sums[split * call.rows + b] = sums[m];
      }
    }
  }

 private:
  // Over the sixteen lanes that share rows.
  template <class Block, class Join>
  static SOLID_DEVICE T across(Block& block, T value, const Join& join) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) value = join(value, block.warp_xor(value, lanes));
    return value;
  }
};

// A thread a row: the splits' sums in their order, the loss, and what makes gradients of logits.
template <class T>
struct CatalogueLoss {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 8;
  using Args = CatalogueCrossEntropyCuda;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& call) {
    const int64_t b = block.index() * kThreads + block.thread();
    if (b >= call.rows) return;
    const CatalogueWorkspace<T> of(call);
    const int64_t splits = catalogue_splits(call.rows, call.items);
    T top = lowest<T>(), sum = 0;
    for (int64_t s = 0; s < splits; ++s) top = larger(of.largest[s * call.rows + b], top);
    for (int64_t s = 0; s < splits; ++s)
      sum += of.sums[s * call.rows + b] * catalogue_exp(of.largest[s * call.rows + b] - top);
    const bool known = call.target[b] >= 0 && call.target[b] < call.items;
    const T nan = infinity<T>() - infinity<T>();
    static_cast<T*>(call.loss)[b] = known ? catalogue_log(sum) + (top - of.target_logit[b]) : nan;
    if (call.weight == nullptr) return;
    of.shift[b] = top;
    of.factor[b] = known ? static_cast<const T*>(call.weight)[b] / sum : nan;
  }
};

// dtable (of_items) of 64 items, or a split's part of dstate of 64 rows: 64 components of it. Each tile of
// logits is computed again, becomes g in shared memory, and is multiplied with the tile's rows of the other
// operand.
template <class T, bool of_items>
struct CatalogueGradient {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 2;
  using Args = CatalogueCrossEntropyCuda;
  static constexpr int kTile = int(kCatalogueTile), kPitch = kTile + 4;
  static constexpr int64_t kBytes = (2 * 16 * kPitch + 2 * kTile * kPitch) * int64_t(sizeof(T));

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& call) {
    using Tile = CatalogueTile<T, Block>;
    constexpr int kRows = Tile::kRows, kItems = Tile::kItems;
    Tile tile(block, call);
    auto g = block.template shared<T>(kTile * kPitch);        // [what is summed over][what the block has]
    auto operand = block.template shared<T>(kTile * kPitch);  // [what is summed over][components]
    const CatalogueWorkspace<T> of(call);
    const int64_t parts = catalogue_tiles(call.dim), part = block.index() % parts;
    const int64_t splits = of_items ? 1 : catalogue_splits(call.rows, call.items);
    const int64_t split = block.index() / parts % splits, own = block.index() / parts / splits * kTile;
    const CatalogueRange range(catalogue_tiles(of_items ? call.rows : call.items), splits, split);
    const int64_t others = of_items ? call.rows : call.items;
    T sum[kRows][kItems] = {};
    for (int64_t at = range.first; at < range.last; ++at) {
      const int64_t other = at * kTile, first_row = of_items ? other : own,
                    first_item = of_items ? own : other;
      T logits[kRows][kItems];
      tile.logits(first_row, first_item, logits);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        const int64_t b = first_row + tile.row() + m;
        const bool there = b < call.rows;
        const T shift = there ? of.shift[b] : T(0), factor = there ? of.factor[b] : T(0);
        const int64_t target = there ? call.target[b] : -1;
#pragma unroll
        for (int n = 0; n < kItems; ++n) {
          T value = there ? factor * catalogue_exp(logits[m][n] - shift) : T(0);
          if (first_item + tile.item() + n == target) value -= static_cast<const T*>(call.weight)[b];
          const int row = tile.row() + m, item = tile.item() + n;
          g.set(of_items ? row * kPitch + item : item * kPitch + row, value);
        }
      }
      for (int i = block.thread(); i < kTile * kTile; i += kThreads) {
        const int64_t row = other + i / kTile, d = part * kTile + i % kTile;
        const bool present = row < others && d < call.dim;
        operand.set(i / kTile * kPitch + i % kTile,
                    present
                        ? load_element<T>(of_items ? call.state : call.table, call.type, row * call.dim + d)
                        : T(0));
      }
      block.sync();
      const int depth = others - other < kTile ? int(others - other) : kTile;
      for (int k = 0; k < depth; ++k) {
        T a[kRows], b[kItems];
        Tile::read(g, k * kPitch + tile.row(), a);
        Tile::read(operand, k * kPitch + tile.item(), b);
        Tile::add_products(a, b, sum);
      }
      block.sync();
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
      for (int n = 0; n < kItems; ++n) {
        const int64_t row = own + tile.row() + m, d = part * kTile + tile.item() + n;
        if (row >= (of_items ? call.items : call.rows) || d >= call.dim) continue;
        if constexpr (of_items)
          store_element(call.dtable, call.type, row * call.dim + d, sum[m][n]);
        else
          of.partial[(split * call.rows + row) * call.dim + d] = sum[m][n];
      }
  }
};

// dstate: the splits' parts, in their order.
template <class T>
struct CatalogueAdd {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 8;
  using Args = CatalogueCrossEntropyCuda;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& call) {
    const int64_t i = block.index() * kThreads + block.thread(), count = call.rows * call.dim;
    if (i >= count) return;
    const CatalogueWorkspace<T> of(call);
    T sum = 0;
    for (int64_t s = 0; s < catalogue_splits(call.rows, call.items); ++s) sum += of.partial[s * count + i];
    store_element(call.dstate, call.type, i, sum);
  }
};

template <class T, class Launch>
Status run_catalogue_cross_entropy(const Launch& launch, const CatalogueCrossEntropyCuda& call) {
  const int64_t rows = catalogue_tiles(call.rows), items = catalogue_tiles(call.items);
  const int64_t parts = catalogue_tiles(call.dim), splits = catalogue_splits(call.rows, call.items);
  constexpr int64_t kOperands = 2 * 16 * (kCatalogueTile + 4) * int64_t(sizeof(T));
  Status status = launch.template run<CatalogueSums<T>>(rows * splits, kOperands, call);
  if (status == Status::kOk) status = launch.template run<CatalogueLoss<T>>((call.rows + 127) / 128, 0, call);
  if (call.weight == nullptr) return status;
  constexpr int64_t kBytes = CatalogueGradient<T, true>::kBytes;
  if (status == Status::kOk && call.dtable != nullptr)
    status = launch.template run<CatalogueGradient<T, true>>(items * parts, kBytes, call);
  if (call.dstate == nullptr) return status;
  if (status == Status::kOk)
    status = launch.template run<CatalogueGradient<T, false>>(rows * splits * parts, kBytes, call);
  if (status == Status::kOk)
    status = launch.template run<CatalogueAdd<T>>((call.rows * call.dim + 127) / 128, 0, call);
  return status;
}

template <class Launch>
Status plan_catalogue_cross_entropy(const Launch& launch, const CatalogueCrossEntropyCuda& call) {
  if (call.items < 1 || call.dim < 1 || call.rows < 0) return Status::kBadArgument;
  if (call.type == Element::kDouble) return run_catalogue_cross_entropy<double>(launch, call);
  return run_catalogue_cross_entropy<float>(launch, call);
}

}  // namespace solid
