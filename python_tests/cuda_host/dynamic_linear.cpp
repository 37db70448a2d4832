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

const solid_test::Register forward("dynamic_forward_cuda", [](const HostLauncher& launch, Values& values) {
  const auto device = device_of(values);
  const auto call = solid::read_dynamic_call([&] { return values.next(); }, false);
  solid_test::expect_ok(solid::plan_dynamic_forward(launch, call, device));
});

const solid_test::Register backward("dynamic_backward_cuda", [](const HostLauncher& launch, Values& values) {
  const auto device = device_of(values);
  const auto call = solid::read_dynamic_call([&] { return values.next(); }, true);
  solid_test::expect_ok(solid::plan_dynamic_backward(launch, call, device));
});

}  // namespace
