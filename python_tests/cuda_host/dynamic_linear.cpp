// Entries of dynamic_mlp's CUDA kernels on the host. The first two numbers stand for the device.
#include "cuda_host/host.h"
#include "dynamic_linear/dynamic_linear_cuda_plan.cuh"

namespace {

using solid_test::HostLauncher;
using solid_test::Values;

solid::DynamicDevice device_of(Values& values) {
  solid::DynamicDevice device;
  device.multiprocessors = values.next();
  device.shared_bytes = values.next();
  return device;
}

const solid_test::Register workspace("dynamic_cuda_workspace", [](const HostLauncher&, Values& values) {
  const auto call = solid::read_dynamic_sizes([&] { return values.next(); });
  *values.pointer<int64_t>() = solid::DynamicWorkspace(call).bytes(call);
});

// Groups of 32 sequences in a block of the forward and of the backward tiles; 0: the general kernels.
const solid_test::Register groups("dynamic_cuda_groups", [](const HostLauncher&, Values& values) {
  const auto device = device_of(values);
  const auto call = solid::read_dynamic_sizes([&] { return values.next(); });
  int64_t* found = values.pointer<int64_t>();
  if (solid::rounds(call)) {
    found[0] = solid::forward_groups<solid::Tf32Math>(call, device);
    found[1] = solid::backward_groups<solid::Tf32Math>(call, device);
  } else {
    found[0] = solid::forward_groups<solid::PlainMath>(call, device);
    found[1] = solid::backward_groups<solid::PlainMath>(call, device);
  }
});

const solid_test::Register forward("dynamic_forward_cuda", [](const HostLauncher& launch, Values& values) {
  const auto device = device_of(values);
  const auto call = solid::read_dynamic_call([&] { return values.next(); }, false);
  solid_test::expect_ok(solid::plan_dynamic_forward(launch.with_shared(device.shared_bytes), call, device));
});

const solid_test::Register backward("dynamic_backward_cuda", [](const HostLauncher& launch, Values& values) {
  const auto device = device_of(values);
  const auto call = solid::read_dynamic_call([&] { return values.next(); }, true);
  solid_test::expect_ok(solid::plan_dynamic_backward(launch.with_shared(device.shared_bytes), call, device));
});

}  // namespace
