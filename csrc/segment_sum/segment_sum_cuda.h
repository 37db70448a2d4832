// segment_sum on a GPU, in no fixed order or in the order of the rows. Every array lies on the device; values
// are float, bfloat16, half or double.
//
// Nothing is allocated, copied to the host or waited for: calls can be captured in a graph.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace solid {

struct SegmentSumCuda {
  const void* values = nullptr;  // [N, D]
  Element type = Element::kFloat;
  int64_t stride = 0;
  int64_t rows = 0;
  int64_t dim = 0;
  int64_t num_codes = 0;
  void* sums = nullptr;  // [copies, K, D] float (double)
  // In no fixed order: index [N], mask [N] or null; sums must be zero before. A row whose index is not in
  // 0 .. codes - 1 counts nowhere. Where many rows share few codes, blocks add to several copies of the sums,
  // one after the other, so that fewer wait for each other; the caller adds those up.
  const int64_t* index = nullptr;
  const bool* mask = nullptr;
  int64_t copies = 1;
  // In the order given: the rows of code k are order[starts[k]] .. order[starts[k + 1] - 1].
  const int64_t* order = nullptr;   // [N]
  const int64_t* starts = nullptr;  // [K + 1], null: not given
};

Status segment_sum_cuda(const Stream& stream, const SegmentSumCuda& args);

}  // namespace solid
