#include "catalogue_cross_entropy/catalogue_cross_entropy_cuda.cuh"
#include "cuda/launch.cuh"

namespace solid {

Status catalogue_cross_entropy_cuda(const Stream& stream, const CatalogueCrossEntropyCuda& call) {
  return plan_catalogue_cross_entropy(DeviceLauncher(stream), call);
}

}  // namespace solid
