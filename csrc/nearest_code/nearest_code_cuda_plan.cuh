// Which kernels run, and on how many blocks: the same for a GPU and for the host policy of the tests.
#pragma once

#include "nearest_code/nearest_code_cuda_screen.cuh"
#include "nearest_code/nearest_code_cuda_search.cuh"

namespace solid {

inline bool can_screen(const NearestCodeCuda& args) {
  return args.type != Element::kDouble && ScreenedSearch::shared_bytes(args.dim) <= kLeastShared;
}

// Estimated, not measured: one cost takes D fused operations exactly, and about D / 16 + 2 screened; packing
// the codes is a launch of its own, and every row of a block costs about 100 operations more.
inline bool screening_is_faster(const NearestCodeCuda& args) {
  return args.dim >= 16 && args.num_codes >= 128 && args.rows >= 2048;
}

inline bool screens(const NearestCodeCuda& args) {
  if (args.method == Method::kChosen) return can_screen(args) && screening_is_faster(args);
  return args.method == Method::kScreened;
}

inline int64_t workspace_bytes(const NearestCodeCuda& args) {
  if (!screens(args)) return 0;
  const int64_t groups = screen_groups(args.num_codes);
  return groups * (kGroup * 4 * (screen_words(args.dim) + 1) + int64_t(sizeof(GroupBounds)));
}

template <class Launcher>
Status plan_nearest_code(const Launcher& launcher, const NearestCodeCuda& args) {
  constexpr int64_t kMostCodes = 0x7fffff00;  // numbered by int
  if (args.rows < 0 || args.dim < 1 || args.num_codes < 1 || args.num_codes > kMostCodes)
    return Status::kBadArgument;
  if (args.rows == 0) return Status::kOk;
  if (screens(args)) {
    if (!can_screen(args) || args.workspace == nullptr) return Status::kBadArgument;
    const Status packed =
        launcher.template run<PackCodes>(screen_groups(args.num_codes), PackCodes::kSharedBytes, args);
    if (packed != Status::kOk) return packed;
    return launcher.template run<ScreenedSearch>(blocks_of(args.rows, kScreenRows),
                                                 ScreenedSearch::shared_bytes(args.dim), args);
  }
  const int64_t blocks = blocks_of(args.rows, kTile);
  if (args.type == Element::kDouble)
    return launcher.template run<ExactSearch<double>>(blocks, ExactSearch<double>::kSharedBytes, args);
  return launcher.template run<ExactSearch<float>>(blocks, ExactSearch<float>::kSharedBytes, args);
}

}  // namespace solid
