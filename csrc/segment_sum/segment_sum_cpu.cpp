// segment_sum for one CPU instruction set: see segment_sum.h for the contract.
#include "segment_sum/segment_sum_cpu.h"

#include "segment_sum/segment_sum.h"

namespace solid::SOLID_ISA {
namespace {

template <class T>
Status segment_sum(const SegmentSum& args) {
  if (args.num_codes < 1 || args.dim < 0 || args.rows < 0) return Status::kBadArgument;
  sum_by_code<T>(static_cast<const T*>(args.values), args.stride, args.rows, args.dim, args.index, args.mask,
                 nullptr, args.num_codes, args.counts, static_cast<T*>(args.sums), args.threads);
  return Status::kOk;
}

}  // namespace

Status segment_sum_float(const SegmentSum& args) { return segment_sum<float>(args); }
Status segment_sum_double(const SegmentSum& args) { return segment_sum<double>(args); }

}  // namespace solid::SOLID_ISA
