#include "cuda/launch.cuh"
#include "dynamic_linear/dynamic_linear_cuda_plan.cuh"

namespace solid {
namespace {

Status ask(int device, DynamicDevice* found) {
  int multiprocessors = 0, shared = 0;
  cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  found->multiprocessors = multiprocessors;
  found->shared_bytes = shared;
  return cuda_status(int(error));
}

}  // namespace

Status dynamic_forward_cuda(const Stream& stream, const DynamicCuda& call) {
  DynamicDevice device;
  const Status status = ask(stream.device, &device);
  return status == Status::kOk ? plan_dynamic_forward(DeviceLauncher(stream), call, device) : status;
}

Status dynamic_backward_cuda(const Stream& stream, const DynamicCuda& call) {
  DynamicDevice device;
  const Status status = ask(stream.device, &device);
  return status == Status::kOk ? plan_dynamic_backward(DeviceLauncher(stream), call, device) : status;
}

}  // namespace solid
