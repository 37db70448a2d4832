// nearest_code on a GPU: the meaning is that of nearest_code.h, bit by bit where a CPU has
// fused multiply-add; only `distance` and `sums` add in another order. Every array lies on the device.
//
// x and quantized are float, bfloat16, half or double; codebook, distance and sums float, or double with a
// double x. `counts` and `sums` must be zero before the call: rows are added to them as they are found, in no
// fixed order (counts are exact all the same). For sums in the order of the rows: segment_sum_cuda with the
// rows sorted by code.
//
// Nothing is allocated, copied to the host or waited for: calls can be captured in a graph.
#pragma once

#include <cstdint>

#include "common/status.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"

namespace solid {

enum class Method : int {
  kChosen = 0,    // as screening_is_faster says
  kExact = 1,     // every difference: one launch
  kScreened = 2,  // matrix units first, then the few codes that can be nearest
                  // (nearest_code_cuda_screen.cuh); needs workspace
};

struct NearestCodeCuda {
  const void* x = nullptr;  // [N, D], rows x_stride elements apart
  Element type = Element::kFloat;
  int64_t x_stride = 0;
  int64_t rows = 0;                // N
  int64_t dim = 0;                 // D
  const void* codebook = nullptr;  // [K, D]
  int64_t num_codes = 0;           // K < 2^31
  const bool* mask = nullptr;      // [N], null: every row is valid
  void* workspace = nullptr;       // nearest_code_cuda_workspace bytes, 16-byte aligned
  int64_t* index = nullptr;        // [N]
  void* quantized = nullptr;       // [N, D]
  void* distance = nullptr;        // [N]
  int64_t* counts = nullptr;       // [K], null: not wanted
  void* sums = nullptr;            // [K, D], null: not wanted
  Method method = Method::kChosen;
};

// Bytes of workspace: 0 where the exact search is chosen, O(K D) otherwise.
int64_t nearest_code_cuda_workspace(Method method, Element type, int64_t rows, int64_t num_codes,
                                    int64_t dim);

Status nearest_code_cuda(const Stream& stream, const NearestCodeCuda& args);

}  // namespace solid
