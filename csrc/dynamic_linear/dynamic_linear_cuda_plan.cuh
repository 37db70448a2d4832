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

// Tiles take float32 and narrower, T = 1, as long as a block's fit; most sequences a block while every
// multiprocessor has one, and 32 at least.
template <class Math, class Bytes>
bool choose_tiles(const DynamicCuda& call, const DynamicDevice& device, const Bytes& bytes, TileArgs* args) {
  if (call.targets != 1 || call.type == Element::kDouble) return false;
  for (int groups = 4; groups > 0; groups /= 2) {
    const int64_t blocks = (call.batch + groups * kTile - 1) / (groups * kTile);
    if (bytes(TileShape<Math>(call, groups)) > device.shared_bytes) continue;
    if (groups > 1 && blocks < device.multiprocessors) continue;
    args->groups = groups;
    args->packed = packed_maps(call);
    return true;
  }
  return false;
}

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
Status forward_by_tiles(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device,
                        bool* taken) {
  TileArgs args(call);
  const auto bytes = [&](const TileShape<Math>& shape) { return shape.forward_bytes(call); };
  *taken = choose_tiles<Math>(call, device, bytes, &args);
  if (!*taken) return Status::kOk;
  const TileShape<Math> shape(call, args.groups);
  return launch.template run<DynamicForwardTiles<Math>>((call.batch + shape.sequences - 1) / shape.sequences,
                                                        shape.forward_bytes(call), args);
}

template <class Math, class Launch>
Status backward_by_tiles(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device,
                         bool* taken) {
  TileArgs args(call);
  const auto bytes = [](const TileShape<Math>& shape) { return shape.backward_bytes(); };
  *taken =
      MapShape<Math>(call).bytes() <= device.shared_bytes && choose_tiles<Math>(call, device, bytes, &args);
  if (!*taken) return Status::kOk;
  const TileShape<Math> shape(call, args.groups);
  const Status status = launch.template run<DynamicBackwardTiles<Math>>(
      (call.batch + shape.sequences - 1) / shape.sequences, shape.backward_bytes(), args);
  if (status != Status::kOk) return status;
  const DynamicWorkspace& places = args.places;
  return launch.template run<DynamicMapTiles<Math>>(places.tasks * places.strips,
                                                    MapShape<Math>(call).bytes(), args);
}

template <class T, class Launch>
Status forward_any(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device) {
  AnyArgs args(call);
  if (!choose_any(device, 1, &args)) return Status::kTooLarge;
  return launch.template run<DynamicForwardAny<T>>((call.batch + args.sequences - 1) / args.sequences,
                                                   any_bytes(args, 1), args);
}

template <class T, class Launch>
Status backward_any(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device) {
  AnyArgs args(call);
  if (!choose_any(device, kWeightArrays, &args)) return Status::kTooLarge;
  const Status status = launch.template run<DynamicBackwardAny<T>>(
      (call.batch + args.sequences - 1) / args.sequences, any_bytes(args, kWeightArrays), args);
  if (status != Status::kOk) return status;
  const DynamicWorkspace& places = args.places;
  return launch.template run<DynamicMapAny<T>>(places.tasks * places.strips, DynamicMapAny<T>::bytes(call),
                                               args);
}

template <class Launch>
Status plan_dynamic_forward(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device) {
  if (!sensible(call)) return Status::kBadArgument;
  if (call.targets == 0) return Status::kOk;
  bool taken = false;
  const Status status = call.tf32 || call.type != Element::kFloat
                            ? forward_by_tiles<Tf32Math>(launch, call, device, &taken)
                            : forward_by_tiles<PlainMath>(launch, call, device, &taken);
  if (taken) return status;
  if (call.hidden == nullptr && call.layers > 1 && call.batch > 0) return Status::kBadArgument;
  return call.type == Element::kDouble ? forward_any<double>(launch, call, device)
                                       : forward_any<float>(launch, call, device);
}

template <class Launch>
Status plan_dynamic_backward(const Launch& launch, const DynamicCuda& call, const DynamicDevice& device) {
  if (!sensible(call)) return Status::kBadArgument;
  bool taken = false;
  const Status status = call.tf32 || call.type != Element::kFloat
                            ? backward_by_tiles<Tf32Math>(launch, call, device, &taken)
                            : backward_by_tiles<PlainMath>(launch, call, device, &taken);
  if (taken) return status;
  return call.type == Element::kDouble ? backward_any<double>(launch, call, device)
                                       : backward_any<float>(launch, call, device);
}

}  // namespace solid
