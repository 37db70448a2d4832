// The workspace of the backward: what it leaves of a chunk of sequences for the gradients of the maps.
#pragma once

#include "dynamic_linear/dynamic_linear_cpu_call.h"

namespace solid::SOLID_ISA {
namespace {

constexpr int kTargetRun = 4;     // targets applied at a time, T > 1
constexpr int64_t kMapRows = 64;  // sequences whose M is expanded at a time: 64 x 32 floats stay in L1

constexpr int64_t kChunkStep = 32;  // a multiple of every block

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Sequences per chunk, from B alone: few enough that the workspace stays far below B D O values, enough that
// a chunk occupies many threads.
int64_t chunk_of(const DynamicMlp& mlp) {
  const bool single = mlp.targets == 1;
  const int64_t aim = round_up(mlp.batch / (single ? 8 : 32), kChunkStep);
  const int64_t low = single ? 128 : 32, high = single ? 1024 : 128;
  const int64_t chunk = aim < low ? low : aim > high ? high : aim;
  return least(chunk, round_up(mlp.batch, kChunkStep));
}

// Widths in elements, padded for the widest instruction set so that the size does not depend on it.
template <class T>
int64_t padded(int64_t outputs) {
  return round_up(outputs, 64 / int64_t(sizeof(T)));
}
template <class T>
int64_t mask_words(int64_t outputs) {
  return (outputs + 8 * int64_t(sizeof(T)) - 1) / (8 * int64_t(sizeof(T)));
}

template <class T>
struct Chunk {
  int64_t size;      // C, capacity in sequences
  int64_t elements;  // of the whole workspace
  int64_t scratch;   // elements per worker
  T* scratches;
  T* z_item;  // [C, k] as T, if x is bfloat16
  T* z_semantic;
  T* layers;  // per layer (T = 1) or for the layer at hand (T > 1): mask words [D + 1][words][C],
              // then T = 1: g [C, padded O]; T > 1: x g^T [D + 1][C][padded O]
  T* upper;   // T > 1: g of the layer at hand and of the one below, [C, T, m] each
  T* lower;

  Chunk(const DynamicMlp& mlp, void* workspace) : size(chunk_of(mlp)) {
    const int64_t m = widest(mlp), code_dims = mlp.item.code_dim + mlp.semantic.code_dim;
    const bool single = mlp.targets == 1;
    if (single) {
      scratch = (2 * code_dims + 4 * m) * (kTileBytes / int64_t(sizeof(T)));
    } else {
      scratch = (2 * code_dims + (3 * kTargetRun + 1) * m + 2 * (m + 1) * m) * (64 / int64_t(sizeof(T)));
    }
    const int64_t map_scratch = size + kMapRows * 2 * (64 / int64_t(sizeof(T)));
    if (scratch < map_scratch) scratch = map_scratch;
    scratches = static_cast<T*>(workspace);
    z_item = scratches + mlp.threads * scratch;
    const bool converted = mlp.type == DynamicType::kBFloat16;
    z_semantic = z_item + (converted ? round_up(size * mlp.item.code_dim, 16) : 0);
    layers = z_semantic + (converted ? round_up(size * mlp.semantic.code_dim, 16) : 0);
    int64_t sum = 0, most = 0;
    for (int64_t l = 0; l < mlp.layers; ++l) {
      const int64_t part = layer_elements(mlp, l);
      sum += part;
      most = part > most ? part : most;
    }
    upper = layers + (single ? sum : most);
    lower = upper + (single ? 0 : round_up(size * mlp.targets * m, 16));
    T* const end = lower + (single ? 0 : round_up(size * mlp.targets * m, 16));
    elements = end - scratches;
  }

  int64_t mask_elements(const DynamicMlp& mlp, int64_t l) const {
    return mlp.item.present ? (mlp.sizes[l] + 1) * mask_words<T>(mlp.sizes[l + 1]) * size : 0;
  }
  int64_t layer_elements(const DynamicMlp& mlp, int64_t l) const {
    const int64_t rows = mlp.targets == 1 ? 1 : mlp.sizes[l] + 1;
    return mask_elements(mlp, l) + rows * size * padded<T>(mlp.sizes[l + 1]);
  }
  Word<T>* mask(const DynamicMlp& mlp, int64_t l) const {
    T* at = layers;
    for (int64_t j = 0; j < (mlp.targets == 1 ? l : 0); ++j) at += layer_elements(mlp, j);
    return reinterpret_cast<Word<T>*>(at);
  }
  T* rows(const DynamicMlp& mlp, int64_t l) const {
    return reinterpret_cast<T*>(mask(mlp, l)) + mask_elements(mlp, l);
  }
};

}  // namespace
}  // namespace solid::SOLID_ISA
