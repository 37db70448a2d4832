// CPU kernel of dynamic_mlp; the contract is in dynamic_linear.h.
//
// A vector's lanes are sequences. A block of R vectors of sequences is turned into tiles [feature][R
// vectors], and everything is then a product of map values (scalars, broadcast) with tile rows: no tails in
// D, O or k, no sums across lanes, and the map is read in the order in which it lies. R rows times N features
// accumulate in registers.
//
// T = 1 backward uses that the generated weight is linear in z. With g the gradient at the layer's output and
// U_i[k] = sum_o A[i, k, o] m[i, o] g[o] (m: clip mask, 1 for the semantic branch):
//   dz[k] = sum_i x_i U_i[k],  and for the semantic branch  dx_i = sum_k z_k U_i[k] + sum_o a[i, o] g[o],
// so only the item branch is generated again, for its mask. T > 1 generates the block's weights once, applies
// them to all targets, and sums x g^T over the targets before it meets the maps.
//
// Parameter gradients: dA[i, k, o] = sum_b z[b, k] M[b, o], M[b, o] = m[b, i, o] sum_t x[b, t, i] g[b, t, o].
// They are taken chunk by chunk after the chunk's sequences are done; the mask waits in the workspace as
// bits. A row i of one layer and branch belongs to one thread and sums in the order of b.
#include "dynamic_linear/dynamic_linear.h"

#if defined(__AVX512BF16__)

// Nothing here uses bfloat16 arithmetic: this level runs the kernel of the one below.
namespace solid::SOLID_ISA {

Status dynamic_forward(const DynamicMlp& mlp) { return avx512::dynamic_forward(mlp); }
Status dynamic_backward(const DynamicMlp& mlp) { return avx512::dynamic_backward(mlp); }
int64_t dynamic_workspace(const DynamicMlp& mlp, bool backward) {
  return avx512::dynamic_workspace(mlp, backward);
}

}  // namespace solid::SOLID_ISA

#else

#  include "common/parallel.h"
#  include "dynamic_linear/dynamic_linear_cpu_forward.h"
#  include "dynamic_linear/dynamic_linear_cpu_maps.h"
#  include "dynamic_linear/dynamic_linear_cpu_targets.h"

namespace solid::SOLID_ISA {
namespace {

// Bytes of a row of both maps up to which it stays in the inner cache while a block passes. Beyond, a group
// of blocks shares it: on AVX2 at D = O = k = 64 one block alone left it to the outer caches.
constexpr int64_t kRowInCache = 16384;
constexpr int64_t kGroup =
    4;  // full blocks at the widest instruction set; more of them where they are narrower

bool grouped(const DynamicMlp& mlp) {
  const int64_t size = mlp.type == DynamicType::kFloat64 ? 8 : 4;
  return mlp.targets == 1 && (mlp.item.code_dim + mlp.semantic.code_dim) * widest(mlp) * size > kRowInCache;
}

int64_t scratch_forward(const DynamicMlp& mlp) {
  const int64_t code_dim = mlp.item.code_dim + mlp.semantic.code_dim, m = widest(mlp);
  const int64_t one = (2 * m + (m + 1) * m) * int64_t(sizeof(double));
  const int64_t many = grouped(mlp) ? kGroup : 1;
  int64_t block = (code_dim + 2 * kTargetRun * m + (m + 1) * m) * 64;
  if (mlp.targets == 1)
    block = many * (code_dim + 2 * m) * kTileBytes + (many > 1 ? code_dim * m * int64_t(sizeof(double)) : 0);
  return one > block ? one : block;
}

template <class T>
Status forward(const DynamicMlp& mlp) {
  constexpr int L = kLanes<T>;
  const Call<T> call(mlp);
  const int64_t scratch_bytes = scratch_forward(mlp);
  if (one_by_one<T>(mlp)) {
    for_each_worker(mlp.batch, mlp.threads, [&](int64_t worker, int64_t b) {
      forward_one(call, b, reinterpret_cast<T*>(static_cast<char*>(mlp.workspace) + worker * scratch_bytes));
    });
    return Status::kOk;
  }
  int64_t block = mlp.targets == 1 ? kBlockVectors<T> * L : L;
  if (grouped(mlp)) {  // which changes no result: fewer blocks where all threads would not have some
    const int64_t most = kGroup * kTileBytes / (block * int64_t(sizeof(T)));
    const int64_t fair = mlp.batch / (2 * block * mlp.threads);
    block *= fair < 1 ? 1 : least(most, fair);
  }
  const int64_t blocks = (mlp.batch + block - 1) / block;
  for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t b) {
    T* scratch = reinterpret_cast<T*>(static_cast<char*>(mlp.workspace) + worker * scratch_bytes);
    const int64_t first = b * block, count = least(block, mlp.batch - first);
    if (mlp.targets != 1) {
      forward_block_targets(call, first, count, scratch);
    } else if (count > L) {
      forward_blocks<kBlockVectors<T> >(call, first, count, scratch);
    } else {
      forward_blocks<1>(call, first, count, scratch);
    }
  });
  return Status::kOk;
}

template <class T>
Status backward(const DynamicMlp& mlp) {
  constexpr int L = kLanes<T>;
  const Call<T> call(mlp);
  const Chunk<T> chunk(mlp, mlp.workspace);
  const bool single = mlp.targets == 1;
  const int64_t block = single ? kBlockVectors<T> * L : L;
  const auto scratch_of = [&](int64_t worker) { return chunk.scratches + worker * chunk.scratch; };
  int64_t first = 0;
  do {
    const int64_t count = least(chunk.size, mlp.batch - first);
    const int64_t blocks = (count + block - 1) / block;
    const auto widen = [&](const Rows<T>& z, int64_t code_dim, T* to) {
      for (int64_t j = 0; j < count * code_dim; ++j) to[j] = z.read(first * code_dim + j);
    };
    if (call.narrow) {
      widen(call.z_item, mlp.item.code_dim, chunk.z_item);
      widen(call.z_semantic, mlp.semantic.code_dim, chunk.z_semantic);
    }
    if (single) {
      for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t b) {
        const int64_t slot = b * block, n = least(block, count - slot);
        if (n > L) {
          backward_block<kBlockVectors<T> >(call, chunk, first + slot, slot, n, scratch_of(worker));
        } else {
          backward_block<1>(call, chunk, first + slot, slot, n, scratch_of(worker));
        }
      });
      int64_t rows = 0;
      for (int64_t l = 0; l < mlp.layers; ++l) rows += 2 * (mlp.sizes[l] + 1);
      for_each_worker(rows, mlp.threads, [&](int64_t worker, int64_t row) {
        int64_t l = 0;
        for (; row >= 2 * (mlp.sizes[l] + 1); ++l) row -= 2 * (mlp.sizes[l] + 1);
        map_rows_of_layer(call, chunk, l, row, first, count, scratch_of(worker));
      });
    } else {
      for (int64_t l = mlp.layers - 1; l >= 0; --l) {
        for_each_worker(blocks, mlp.threads, [&](int64_t worker, int64_t b) {
          const int64_t slot = b * block, n = least(block, count - slot);
          backward_targets(call, chunk, l, first + slot, slot, n, scratch_of(worker));
        });
        for_each_worker(2 * (mlp.sizes[l] + 1), mlp.threads, [&](int64_t worker, int64_t row) {
          map_rows_of_layer(call, chunk, l, row, first, count, scratch_of(worker));
        });
      }
    }
    first += count;
  } while (first < mlp.batch);
  return Status::kOk;
}

}  // namespace

Status dynamic_forward(const DynamicMlp& mlp) {
  return mlp.type == DynamicType::kFloat64 ? forward<double>(mlp) : forward<float>(mlp);
}

Status dynamic_backward(const DynamicMlp& mlp) {
  return mlp.type == DynamicType::kFloat64 ? backward<double>(mlp) : backward<float>(mlp);
}

int64_t dynamic_workspace(const DynamicMlp& mlp, bool backward) {
  if (!backward) return mlp.threads * scratch_forward(mlp);
  if (mlp.type == DynamicType::kFloat64)
    return Chunk<double>(mlp, nullptr).elements * int64_t(sizeof(double));
  return Chunk<float>(mlp, nullptr).elements * int64_t(sizeof(float));
}

}  // namespace solid::SOLID_ISA

#endif