// catalogue_cross_entropy on a GPU: two launches for the losses, up to three more for the gradients. The
// meaning is that of catalogue_cross_entropy.h; state, table, bias and the gradients share one element type,
// losses, weights and the workspace are float32 (float64 for float64). The loss of a row whose target is no
// item is NaN, and so are its gradients.
//
// Logits are computed again for each gradient, a tile of 64 rows and 64 items at a time: the workspace holds
// five numbers a row and, with the gradient of state, as many of its size as the items are cut into splits.
// Their number depends on the sizes alone, and what they add to is added in their order: the result is the
// same every time.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace solid {

struct CatalogueCrossEntropyCuda {
  Element type = Element::kFloat;
  int64_t rows = 0;   // B
  int64_t dim = 0;    // D
  int64_t items = 0;  // V
  const void* state = nullptr;
  const void* table = nullptr;
  const int64_t* target = nullptr;
  const void* bias = nullptr;    // null: zeros
  const void* weight = nullptr;  // null: no gradients
  void* loss = nullptr;
  void* dstate = nullptr;     // null: not wanted
  void* dtable = nullptr;     // null: not wanted
  void* workspace = nullptr;  // catalogue_cross_entropy_cuda_bytes
};

template <class Next>
CatalogueCrossEntropyCuda read_catalogue_cross_entropy_call(const Next& next) {
  const auto pointer = [&] { return reinterpret_cast<void*>(next()); };
  CatalogueCrossEntropyCuda call;
  call.type = static_cast<Element>(next());
  call.rows = next();
  call.dim = next();
  call.items = next();
  call.state = pointer();
  call.table = pointer();
  call.target = static_cast<const int64_t*>(pointer());
  call.bias = pointer();
  call.weight = pointer();
  call.loss = pointer();
  call.dstate = pointer();
  call.dtable = pointer();
  call.workspace = pointer();
  return call;
}

constexpr int64_t kCatalogueTile = 64;  // rows, items, and components of a gradient
constexpr int64_t kCatalogueBlocks =
    264;  // wanted for a pass over the rows: two on each of 132 multiprocessors
constexpr int64_t kCatalogueSplits = 32;

SOLID_BOTH int64_t catalogue_tiles(int64_t count) { return (count + kCatalogueTile - 1) / kCatalogueTile; }

// The items' tiles are cut into so many splits.
SOLID_BOTH int64_t catalogue_splits(int64_t rows, int64_t items) {
  const int64_t tiles = catalogue_tiles(items), of_rows = rows > 0 ? catalogue_tiles(rows) : 1;
  const int64_t wanted = (kCatalogueBlocks + of_rows - 1) / of_rows;
  const int64_t most = tiles < kCatalogueSplits ? tiles : kCatalogueSplits;
  return wanted < most ? wanted : most;
}

inline int64_t catalogue_cross_entropy_cuda_bytes(Element type, int64_t rows, int64_t dim, int64_t items) {
  const int64_t splits = catalogue_splits(rows, items);
  return rows * (2 * splits + 3 + splits * dim) * (type == Element::kDouble ? 8 : 4);
}

Status catalogue_cross_entropy_cuda(const Stream& stream, const CatalogueCrossEntropyCuda& call);

}  // namespace solid
