#include "cuda/launch.cuh"
#include "segment_sum/segment_sum_cuda_plan.cuh"

namespace solid {

Status segment_sum_cuda(const Stream& stream, const SegmentSumCuda& args) {
  return plan_segment_sum(DeviceLauncher(stream), args);
}

}  // namespace solid
