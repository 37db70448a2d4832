// Starting a kernel on a GPU. Entry points are templates over the launcher, so that the tests run the same
// choice of kernels, grids and shared memory on the host (python_tests/cuda_host/block.h, HostLauncher).
#pragma once

#include <cuda_runtime.h>

#include "common/status.h"
#include "cuda/block.cuh"
#include "cuda/stream.h"

namespace solid {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    kernel_entry(const __grid_constant__ typename Kernel::Args args) {
  static_assert(Kernel::kThreads % 32 == 0, "kThreads: expected whole warps");
  DeviceBlock<Kernel::kThreads> block;
  Kernel::run(block, args);
}

class DeviceLauncher {
 public:
  explicit DeviceLauncher(const Stream& stream) : stream_(stream) {}

  // Nothing is launched where a limit is exceeded, so that no error stays behind in the context.
  template <class Kernel>
  Status run(int64_t blocks, int64_t shared_bytes, const typename Kernel::Args& args) const {
    if (blocks == 0) return Status::kOk;
    if (blocks > kMostBlocks) return Status::kTooLarge;
    int current = -1;
    cudaError_t error = cudaGetDevice(&current);
    if (error == cudaSuccess && current != stream_.device) error = cudaSetDevice(stream_.device);
    constexpr int64_t kWithoutAsking = 48 * 1024;
    if (error == cudaSuccess && shared_bytes > kWithoutAsking)
      error = cudaFuncSetAttribute(kernel_entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   int(shared_bytes));
    if (error == cudaSuccess) {
      void* parameters[] = {const_cast<typename Kernel::Args*>(&args)};
      error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel_entry<Kernel>), dim3(unsigned(blocks)),
                               dim3(Kernel::kThreads), parameters, size_t(shared_bytes),
                               static_cast<cudaStream_t>(stream_.handle));
    }
    return cuda_status(int(error));
  }

 private:
  Stream stream_;
};

}  // namespace solid
