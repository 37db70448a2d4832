// CPU kernel of low_rank_mlp; the contract is in low_rank.h.
//
// Nearly all work is six products with the maps, of (r + 1) k r multiply-adds a sequence, layer and branch:
// the cores (two branches), and backward dz (two) and dA (two). As in dynamic_linear_cpu.cpp a vector's lanes
// are sequences, but for dA, where they are outputs and the sum runs over the sequences.
//
// The core of a block of kPitch sequences is a tile [(r + 1) r][kPitch] that is kept for the backward, with
// its clip's mask as bits: dh = S ds then needs no map, and dz one product for each branch, with the core's
// gradient P = (h U)^T ds (summed over targets) as a tile like it:
//   dz[k] = sum over i and o of A[i, k, o] m[i, o] P[i, o]        m: the mask, 1 for the semantic branch
//   dA[i, k, o] = sum over sequences of z[k] m[i, o] P[i, o]
// The latter are taken chunk by chunk after the chunk's sequences are done, each row by one thread.
#include "low_rank/low_rank.h"

#if defined(__AVX512BF16__)

// Nothing here uses bfloat16 arithmetic: this level runs the kernel of the one below.
namespace solid::SOLID_ISA {

int64_t low_rank_kept(const LowRankMlp& mlp) { return avx512::low_rank_kept(mlp); }
int64_t low_rank_workspace(const LowRankMlp& mlp, bool backward) {
  return avx512::low_rank_workspace(mlp, backward);
}
Status low_rank_forward(const LowRankMlp& mlp) { return avx512::low_rank_forward(mlp); }
Status low_rank_backward(const LowRankMlp& mlp) { return avx512::low_rank_backward(mlp); }

}  // namespace solid::SOLID_ISA

#else

#  include "common/parallel.h"
#  include "low_rank/low_rank_cpu_block.h"
#  include "low_rank/low_rank_cpu_few.h"

namespace solid::SOLID_ISA {
namespace {

template <class T>
int64_t few_scratch(const LowRankMlp& mlp) {
  return 3 * mlp.rank + 3 * RankCall<T>::widest_of(mlp) + (mlp.layers + 1) * (mlp.rank + 1) * mlp.rank;
}

template <class T>
int64_t workspace_elements(const LowRankMlp& mlp, bool backward) {
  if (Kept<T>(mlp).few()) return (backward ? 1 : mlp.threads) * few_scratch<T>(mlp);
  return backward ? RankChunk<T>(mlp, nullptr).elements : mlp.threads * forward_scratch<T>(mlp);
}

template <class T>
Status forward(const LowRankMlp& mlp) {
  const RankCall<T> call(mlp);
  T* const workspace = static_cast<T*>(mlp.workspace);
  if (call.kept.few()) {
    for_each_worker(mlp.batch, mlp.threads, [&](int64_t worker, int64_t b) {
      forward_few(call, b, workspace + worker * few_scratch<T>(mlp));
    });
  } else {
    for_each_worker(call.kept.blocks, mlp.threads, [&](int64_t worker, int64_t block) {
      forward_rank_block(call, block, workspace + worker * forward_scratch<T>(mlp));
    });
  }
  return Status::kOk;
}

template <class T>
Status backward(const LowRankMlp& mlp) {
  const RankCall<T> call(mlp);
  if (call.kept.few()) {
    backward_few(call, static_cast<T*>(mlp.workspace));
    return Status::kOk;
  }
  const RankChunk<T> chunk(mlp, mlp.workspace);
  const auto scratch_of = [&](int64_t worker) { return chunk.base + worker * chunk.scratch; };
  int64_t units = 0;
  for (int64_t l = 0; l < mlp.layers; ++l) units += units_of_layer(call, l);
  T dgate = 0;
  for (int64_t first = 0; first < mlp.batch; first += chunk.size) {
    const int64_t count = least(chunk.size, mlp.batch - first), blocks = (count + kPitch - 1) / kPitch;
    for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t block) {
      const int64_t slot = block * kPitch;
      backward_rank_block(call, chunk, first + slot, slot, least(kPitch, count - slot), scratch_of(worker));
    });
    for (int64_t block = 0; block < blocks && call.gated; ++block) dgate += chunk.gates[block];
    for_each_worker(units, mlp.threads, [&](int64_t worker, int64_t unit) {
      int64_t l = 0;
      for (; unit >= units_of_layer(call, l); ++l) unit -= units_of_layer(call, l);
      sum_unit(call, chunk, l, unit, first, count, scratch_of(worker));
    });
  }
  if (mlp.dgate) *static_cast<T*>(mlp.dgate) = dgate;
  return Status::kOk;
}

}  // namespace

int64_t low_rank_kept(const LowRankMlp& mlp) {
  return mlp.is_double ? Kept<double>(mlp).elements() : Kept<float>(mlp).elements();
}

int64_t low_rank_workspace(const LowRankMlp& mlp, bool backward) {
  return mlp.is_double ? workspace_elements<double>(mlp, backward) * int64_t(sizeof(double))
                       : workspace_elements<float>(mlp, backward) * int64_t(sizeof(float));
}

Status low_rank_forward(const LowRankMlp& mlp) {
  if (mlp.batch < 1 || mlp.targets < 1) return Status::kBadArgument;
  return mlp.is_double ? forward<double>(mlp) : forward<float>(mlp);
}

Status low_rank_backward(const LowRankMlp& mlp) {
  if (mlp.batch < 1 || mlp.targets < 1) return Status::kBadArgument;
  return mlp.is_double ? backward<double>(mlp) : backward<float>(mlp);
}

}  // namespace solid::SOLID_ISA

#endif
