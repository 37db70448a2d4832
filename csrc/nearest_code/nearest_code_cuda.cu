#include "cuda/launch.cuh"
#include "nearest_code/nearest_code_cuda_plan.cuh"

namespace solid {

int64_t nearest_code_cuda_workspace(Method method, Element type, int64_t rows, int64_t num_codes,
                                    int64_t dim) {
  NearestCodeCuda args;
  args.method = method, args.type = type, args.rows = rows, args.num_codes = num_codes, args.dim = dim;
  return workspace_bytes(args);
}

Status nearest_code_cuda(const Stream& stream, const NearestCodeCuda& args) {
  return plan_nearest_code(DeviceLauncher(stream), args);
}

}  // namespace solid
