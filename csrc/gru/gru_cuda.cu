#include "cuda/launch.cuh"
#include "gru/gru_cuda.cuh"

namespace solid {
namespace {

Status run(const Stream& stream, const GruCuda& gru, bool backward) {
  int shared = 0;
  const Status status = cuda_status(
      int(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device)));
  return status == Status::kOk ? plan_gru(DeviceLauncher(stream), gru, shared, backward) : status;
}

}  // namespace

Status gru_forward_cuda(const Stream& stream, const GruCuda& gru) { return run(stream, gru, false); }
Status gru_backward_cuda(const Stream& stream, const GruCuda& gru) { return run(stream, gru, true); }

}  // namespace solid
