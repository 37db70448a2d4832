// nearest_code on the host policy, with the arguments of their bindings (no device, no
// stream).
#include "cuda_host/host.h"
#include "nearest_code/nearest_code_cuda_plan.cuh"

namespace {

using solid_test::HostLauncher;
using solid_test::Values;

const solid_test::Register workspace("nearest_code_cuda_workspace", [](const HostLauncher&, Values& values) {
  solid::NearestCodeCuda args;
  args.method = static_cast<solid::Method>(values.next());
  args.type = static_cast<solid::Element>(values.next());
  args.rows = values.next(), args.num_codes = values.next(), args.dim = values.next();
  *values.pointer<int64_t>() = solid::workspace_bytes(args);
});

const solid_test::Register search("nearest_code_cuda", [](const HostLauncher& launcher, Values& values) {
  solid::NearestCodeCuda args;
  args.method = static_cast<solid::Method>(values.next());
  args.type = static_cast<solid::Element>(values.next());
  args.x = values.pointer<void>(), args.x_stride = values.next();
  args.rows = values.next(), args.dim = values.next();
  args.codebook = values.pointer<void>(), args.num_codes = values.next();
  args.mask = values.pointer<bool>(), args.workspace = values.pointer<void>();
  args.index = values.pointer<int64_t>(), args.quantized = values.pointer<void>();
  args.distance = values.pointer<void>();
  args.counts = values.pointer<int64_t>(), args.sums = values.pointer<void>();
  solid_test::expect_ok(solid::plan_nearest_code(launcher, args));
});

}  // namespace
