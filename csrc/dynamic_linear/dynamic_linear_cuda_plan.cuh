// Which kernels a call of dynamic_mlp starts, on a GPU or on the host.
#pragma once

#include "dynamic_linear/dynamic_linear_cuda_any.cuh"

namespace solid {

// A map and its offset may be read four floats at a time.
inline uint32_t packed_maps(const DynamicCuda& call) {
  uint32_t bits = 0;
  for (int branch = 0; branch < kBranches; ++branch) {
    for (int l = 0; l < call.layers && call.code_dim[branch] > 0; ++l) {
      const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
      if (call.type == Element::kFloat && call.sizes[l + 1] % 4 == 0 && aligned(call.maps[branch][l]) &&
          aligned(call.offsets[branch][l]))
        bits |= 1u << (16 * branch + l);
    }
  }
  return bits;
}

inline bool sensible(const DynamicCuda& call) {
  return call.layers >= 1 && call.layers <= kMostLayers && call.batch >= 0 && call.targets >= 0 &&
         call.code_dim[0] + call.code_dim[1] > 0;
}

// Tiles take float32 and narrower, T = 1, as long as a block's fit: how many groups of 32 sequences a block
// has, the most of which every multiprocessor gets a block, or else the fewest that fit; 0 if none do.
template <class Math, class Bytes>
int tile_groups(const DynamicCuda& call, const DynamicDevice& device, const Bytes& bytes) {
  if (call.targets != 1 || call.type == Element::kDouble) return 0;
  int chosen = 0;
  for (int groups = 4; groups > 0; groups /= 2) {
    if (bytes(TileShape<Math>(call, groups)) > device.shared_bytes) continue;
    chosen = groups;
    if (blocks_of(call.batch, groups * kTile) >= device.multiprocessors) break;
  }
  return chosen;
}

template <class Math>
int forward_groups(const DynamicCuda& call, const DynamicDevice& device) {
  return tile_groups<Math>(call, device,
                           [&](const TileShape<Math>& shape) { return shape.forward_bytes(call); });
}

template <class Math>
int backward_groups(const DynamicCuda& call, const DynamicDevice& device) {
  if (MapShape<Math>(call).bytes() > device.shared_bytes) return 0;
  return tile_groups<Math>(call, device, [](const TileShape<Math>& shape) { return shape.backward_bytes(); });
}

// Products in TF32: float32 where it may be rounded, and what is narrower, which TF32 holds exactly.
inline bool rounds(const DynamicCuda& call) { return call.tf32 || call.type != Element::kFloat; }

// As many sequences and columns as fit beside each other twice in a multiprocessor; false if not even one
// does.
inline bool choose_any(const DynamicDevice& device, int arrays, AnyArgs* args) {
  for (args->sequences = kGroup; args->sequences > 0; args->sequences /= 2) {
    for (args->columns = kTile; args->columns > 0; args->columns /= 2) {
      const bool roomy = args->sequences > 1 || args->columns > 1;
      if (any_bytes(*args, arrays) <= device.shared_bytes / (roomy ? 2 : 1)) return true;
    }
  }
  return false;
}

template <class Math, class Launch>
Status forward_by_tiles(const Launch& launch, const DynamicCuda& call, int groups) {
  TileArgs args(call);
  args.groups = groups, args.packed = packed_maps(call);
  const TileShape<Math> shape(call, groups);
  return launch.template run<DynamicForwardTiles<Math>>(blocks_of(call.batch, shape.sequences),
                                                        shape.forward_bytes(call), args);
}

template <class Math, class Launch>
Status backward_by_tiles(const Launch& launch, const DynamicCuda& call, int groups) {
  TileArgs args(call);
  args.groups = groups, args.packed = packed_maps(call);
  const TileShape<Math> shape(call, groups);
  const Status status = launch.template run<DynamicBackwardTiles<Math>>(
      blocks_of(call.batch, shape.sequences), shape.backward_bytes(), args);
  if (status != Status::kOk) return status;
  const DynamicWorkspace& places = args.places;
  return launch.template run<DynamicMapTiles<Math>>(places.tasks * places.strips,
                                                    MapShape<Math>(call).bytes(), args);
}

template <class T, class Launch>
Status forward_any(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device) {
  AnyArgs args(call);
  if (!choose_any(device, 1, &args)) return Status::kTooLarge;
  return launch.template run<DynamicForwardAny<T>>(blocks_of(call.batch, args.sequences), any_bytes(args, 1),
                                                   args);
}

template <class T, class Launch>
Status backward_any(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device) {
  AnyArgs args(call);
  if (!choose_any(device, kWeightArrays, &args)) return Status::kTooLarge;
  const Status status = launch.template run<DynamicBackwardAny<T>>(blocks_of(call.batch, args.sequences),
                                                                   any_bytes(args, kWeightArrays), args);
  if (status != Status::kOk) return status;
  const DynamicWorkspace& places = args.places;
  return launch.template run<DynamicMapAny<T>>(places.tasks * places.strips, DynamicMapAny<T>::bytes(call),
                                               args);
}

template <class Launch>
Status plan_dynamic_forward(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device) {
  if (!sensible(call)) return Status::kBadArgument;
  if (call.targets == 0) return Status::kOk;
  if (rounds(call)) {
    if (const int groups = forward_groups<Tf32Math>(call, device))
      return forward_by_tiles<Tf32Math>(launch, call, groups);
  } else if (const int groups = forward_groups<PlainMath>(call, device)) {
    return forward_by_tiles<PlainMath>(launch, call, groups);
  }
  if (call.hidden == nullptr && call.layers > 1 && call.batch > 0) return Status::kBadArgument;
  return call.type == Element::kDouble ? forward_any<double>(launch, call, device)
                                       : forward_any<float>(launch, call, device);
}

template <class Launch>
Status plan_dynamic_backward(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device) {
  if (!sensible(call)) return Status::kBadArgument;
  if (rounds(call)) {
    if (const int groups = backward_groups<Tf32Math>(call, device))
      return backward_by_tiles<Tf32Math>(launch, call, groups);
  } else if (const int groups = backward_groups<PlainMath>(call, device)) {
    return backward_by_tiles<PlainMath>(launch, call, groups);
  }
  return call.type == Element::kDouble ? backward_any<double>(launch, call, device)
                                       : backward_any<float>(launch, call, device);
}

}  // namespace solid
