// Softmax cross-entropy of states against a catalogue of items, with its gradients on request.
//
//   logit_bv = <state_b, table_v> + bias_v
//   loss_b = log sum_v exp(logit_bv) - logit_b,target_b
//   p_bv = exp(logit_bv - log sum_u exp(logit_bu)),  g_bv = weight_b (p_bv - [v = target_b])
//   dstate_b = sum_v g_bv table_v,  dtable_v = sum_b g_bv state_b
//
// Shapes: B rows, V >= 1 items, D >= 1 components. state, dstate [B, D], table, dtable [V, D], all dense;
// bias [V] or null for zeros; target [B] in 0 .. V - 1; loss, weight [B]. Types: all float, or all double.
//
// An item whose bias is -infinity takes no part. NaN and infinity go where the formula takes them: a row with
// a NaN among its logits, or with +infinity, has a loss of NaN, and so has one none of whose logits is above
// -infinity. exp is within 2 units in the last place and 0 for arguments below -87.7 (float).
//
// No array of B V values is written. With gradients the exponentials of a block of rows are kept, of 48 to
// 192 rows so that they take at most kKeptLogits values, or 48 an item where there are more items than that
// allows. All results are bitwise the same for any number of threads: items are divided among them, blocks of
// rows follow one another, and what several blocks of items add to is added in their order.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/status.h"

namespace solid {

struct CatalogueCrossEntropy {
  bool is_double = false;
  int64_t rows = 0;   // B
  int64_t dim = 0;    // D
  int64_t items = 0;  // V
  int threads = 1;
  const void* state = nullptr;
  const void* table = nullptr;
  const int64_t* target = nullptr;
  const void* bias = nullptr;    // null: zeros
  const void* weight = nullptr;  // null: no gradients
  void* loss = nullptr;
  void* dstate = nullptr;     // null: not wanted
  void* dtable = nullptr;     // null: not wanted
  void* workspace = nullptr;  // catalogue_cross_entropy_workspace bytes
};

// Values of a block of rows that are kept from the softmax to its gradients.
inline constexpr int64_t kKeptLogits = int64_t(1) << 26;

// catalogue_cross_entropy_workspace: bytes, from the sizes, the number of threads and whether weight is null;
// every level gives the same answer.
#define SOLID_DECLARE(level)                                                    \
  namespace level {                                                             \
  int64_t catalogue_cross_entropy_workspace(const CatalogueCrossEntropy& call); \
  Status catalogue_cross_entropy(const CatalogueCrossEntropy& call);            \
  }
SOLID_FOR_EACH_ISA(SOLID_DECLARE)
#undef SOLID_DECLARE

}  // namespace solid
