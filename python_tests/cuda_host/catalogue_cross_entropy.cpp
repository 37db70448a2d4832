// Entries of catalogue_cross_entropy's CUDA kernels on the host.
#include "catalogue_cross_entropy/catalogue_cross_entropy_cuda.cuh"
#include "cuda_host/host.h"

namespace {

using solid_test::HostLauncher;
using solid_test::Values;

const solid_test::Register workspace("catalogue_cross_entropy_cuda_workspace", [](const HostLauncher&,
                                                                                  Values& values) {
  const auto type = static_cast<solid::Element>(values.next());
  const int64_t rows = values.next(), dim = values.next(), items = values.next();
  *values.pointer<int64_t>() = solid::catalogue_cross_entropy_cuda_bytes(type, rows, dim, items);
});
const solid_test::Register run("catalogue_cross_entropy_cuda", [](const HostLauncher& launch,
                                                                  Values& values) {
  const auto call = solid::read_catalogue_cross_entropy_call([&] { return values.next(); });
  solid_test::expect_ok(solid::plan_catalogue_cross_entropy(launch, call));
});

}  // namespace
