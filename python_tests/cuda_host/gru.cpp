// Entries of gru_last_state's CUDA kernels on the host. The first number is a block's most shared memory.
#include "cuda_host/host.h"
#include "gru/gru_cuda.cuh"

namespace {

using solid_test::HostLauncher;
using solid_test::Values;

void run(const HostLauncher& launch, Values& values, bool backward) {
  const int64_t shared_bytes = values.next();
  const auto gru = solid::read_gru_call([&] { return values.next(); }, backward);
  solid_test::expect_ok(solid::plan_gru(launch, gru, shared_bytes, backward));
}

const solid_test::Register workspace("gru_cuda_workspace", [](const HostLauncher&, Values& values) {
  const auto type = static_cast<solid::Element>(values.next());
  const int64_t batch = values.next(), inputs = values.next(), hidden = values.next();
  *values.pointer<int64_t>() = solid::gru_cuda_bytes(type, batch, inputs, hidden);
});
const solid_test::Register forward("gru_forward_cuda", [](const HostLauncher& launch, Values& values) {
  run(launch, values, false);
});
const solid_test::Register backward("gru_backward_cuda", [](const HostLauncher& launch, Values& values) {
  run(launch, values, true);
});

}  // namespace
