// segment_sum on the host policy, with the arguments of its binding (no device, no stream).
#include "cuda_host/host.h"
#include "segment_sum/segment_sum_cuda_plan.cuh"

namespace {

using solid_test::HostLauncher;
using solid_test::Values;

const solid_test::Register segment("segment_sum_cuda", [](const HostLauncher& launcher, Values& values) {
  solid::SegmentSumCuda args;
  args.type = static_cast<solid::Element>(values.next());
  args.values = values.pointer<void>(), args.stride = values.next();
  args.rows = values.next(), args.dim = values.next(), args.num_codes = values.next();
  args.sums = values.pointer<void>();
  args.index = values.pointer<int64_t>(), args.mask = values.pointer<bool>();
  args.order = values.pointer<int64_t>(), args.starts = values.pointer<int64_t>();
  args.copies = values.next();
  solid_test::expect_ok(solid::plan_segment_sum(launcher, args));
});

}  // namespace
