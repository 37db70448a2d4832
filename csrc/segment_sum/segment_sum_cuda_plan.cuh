// Which kernel sums, and on how many blocks: the same for a GPU and for the host policy of the tests.
#pragma once

#include "segment_sum/segment_sum_cuda.cuh"

namespace solid {

template <class T, class Launcher>
Status plan_segment_sum_of(const Launcher& launcher, const SegmentSumCuda& args) {
  if (args.starts == nullptr)
    return launcher.template run<AtomicSegmentSum<T>>(blocks_of(args.rows, kSumRows), 0, args);
  const int64_t tasks = args.num_codes * blocks_of(args.dim, 32);
  return launcher.template run<OrderedSegmentSum<T>>(blocks_of(tasks, kSumThreads / 32), 0, args);
}

template <class Launcher>
Status plan_segment_sum(const Launcher& launcher, const SegmentSumCuda& args) {
  if (args.rows < 0 || args.dim < 0 || args.num_codes < 1 || args.copies < 1) return Status::kBadArgument;
  if (args.type == Element::kDouble) return plan_segment_sum_of<double>(launcher, args);
  return plan_segment_sum_of<float>(launcher, args);
}

}  // namespace solid
