// What a kernel body may ask of its block. `DeviceBlock` answers on a GPU; the host policy of the tests
// (python_tests/cuda_host/block.h) has the same members and runs the same bodies on the CPU, where it checks
// every access to shared memory and every barrier.
//
// A kernel is a struct:
//
//   struct Scale {
//     static constexpr int kThreads = 128;       // a multiple of 32
//     static constexpr int kBlocks = 4;          // wanted per multiprocessor: bounds the registers
//     struct Args { float* values; ... };        // passed by value
//     template <class Block>
//     static SOLID_DEVICE void run(Block& block, const Args& args);
//   };
//
// and is started by `launch.template run<Scale>(blocks, shared_bytes, args)`: see launch.cuh.
//
// Rules: all threads of a block take the same path to `sync` and `shared`, all lanes of a warp the same path
// to everything named `warp` (shuffles, votes, matrix products). Shared memory that another thread wrote may
// be read after `sync`, or after `sync_warp` by lanes of the same warp; a shuffle orders nothing. No thread
// returns before the last barrier of its block.
#pragma once

#include "cuda/numbers.h"

namespace solid {

// An array in shared memory. Elements are read as array[i] and written by set, so that a host can check both.
template <class T>
class DeviceShared {
 public:
  SOLID_DEVICE explicit DeviceShared(T* data) : data_(data) {}

  SOLID_DEVICE T operator[](int i) const { return data_[i]; }
  SOLID_DEVICE void set(int i, T value) { data_[i] = value; }

  // n neighbours at once; i is a multiple of n.
  template <int n>
  SOLID_DEVICE Pack<T, n> pack(int i) const {
    return load_pack<n>(data_ + i);
  }
  template <int n>
  SOLID_DEVICE void set_pack(int i, Pack<T, n> values) {
    store_pack<n>(data_ + i, values);
  }

  // Atomic; returns what was there before.
  SOLID_DEVICE T add(int i, T value) { return atomicAdd(data_ + i, value); }

  // Elements first .. first + count - 1.
  SOLID_DEVICE DeviceShared part(int first, int /*count*/) const { return DeviceShared(data_ + first); }

  // The same bytes as elements of another type.
  template <class U>
  SOLID_DEVICE DeviceShared<U> as() const {
    return DeviceShared<U>(reinterpret_cast<U*>(data_));
  }

  SOLID_DEVICE T* data() const { return data_; }

 private:
  T* data_;
};

template <int threads_>
class DeviceBlock {
 public:
  static constexpr int kThreads = threads_;
  static constexpr int kWarps = kThreads / 32;
  template <class T>
  using Shared = DeviceShared<T>;

  static SOLID_DEVICE int thread() { return int(threadIdx.x); }
  static SOLID_DEVICE int lane() { return thread() % 32; }
  static SOLID_DEVICE int warp() { return thread() / 32; }
  static SOLID_DEVICE int64_t index() { return blockIdx.x; }
  static SOLID_DEVICE int64_t blocks() { return gridDim.x; }

  // The next array of the block's shared memory, aligned to 16 bytes, not initialised.
  template <class T>
  SOLID_DEVICE DeviceShared<T> shared(int count) {
    extern __shared__ __align__(16) unsigned char solid_shared_memory[];
    T* data = reinterpret_cast<T*>(solid_shared_memory + used_);
    used_ += (count * int(sizeof(T)) + 15) / 16 * 16;
    return DeviceShared<T>(data);
  }

  static SOLID_DEVICE void sync() { __syncthreads(); }
  static SOLID_DEVICE void sync_warp() { __syncwarp(); }

  // Values of other lanes. T: int, unsigned, float, int64_t, double.
  template <class T>
  static SOLID_DEVICE T warp_get(T value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
  }
  template <class T>
  static SOLID_DEVICE T warp_xor(T value, int lanes) {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  static SOLID_DEVICE uint32_t warp_vote(bool value) { return __ballot_sync(0xffffffffu, value); }

  // Atomic, in global memory; returns what was there before. T: int, float, int64_t, double.
  template <class T>
  static SOLID_DEVICE T add(T* to, T value) {
    if constexpr (sizeof(T) == 8 && T(0.5) == T(0))
      return T(atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value)));
    else
      return atomicAdd(to, value);
  }
  // What this thread wrote to global memory before is seen by others before what it writes after.
  static SOLID_DEVICE void fence() { __threadfence(); }

  // Starts a copy of n elements (4, 8 or 16 bytes) from global to shared memory, or of zeros if absent. It
  // may be read after commit_copies, wait_copies and, by other threads, sync.
  template <int n, class T>
  static SOLID_DEVICE void copy_async(DeviceShared<T>& to, int i, const T* from, bool present = true) {
    constexpr int kBytes = n * int(sizeof(T));
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "copy_async: expected 4, 8 or 16 bytes");
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to.data() + i));
    const int bytes = present ? kBytes : 0;
    if constexpr (kBytes == 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
                   : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes),
                   "r"(bytes)
                   : "memory");
  }
  static SOLID_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  // Waits for this thread's copies, all but those of the newest `pending` commits.
  template <int pending>
  static SOLID_DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
  }

  // Four 8 x 8 matrices of 16-bit numbers: lane l names the word where row l % 8 of matrix l / 8 begins (four
  // words, 16-byte aligned) and receives, of each matrix, the pair of columns 2 (l % 4), + 1 of row l / 4.
  static SOLID_DEVICE void warp_load_matrices(const DeviceShared<uint32_t>& words, int row,
                                              uint32_t (&to)[4]) {
    const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(words.data() + row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  }

  // d = a b + c on fragments of a warp, accumulated in float. With g = lane / 4, t = lane % 4:
  //   c, d [16 x 8]   [0], [1]: row g, columns 2t, 2t + 1;  [2], [3]: row g + 8
  //   bf16, half: a [16 x 16] pairs   [0]: row g, k = 2t, 2t + 1;  [1]: row g + 8;  [2], [3]: k + 8
  //               b [16 x 8]  pairs   [0]: k = 2t, 2t + 1, column g;  [1]: k + 8
  //   tf32:       a [16 x 8]          [0]: row g, k = t;  [1]: row g + 8;  [2], [3]: k + 4
  //               b [8 x 8]           [0]: k = t, column g;  [1]: k + 4
  static SOLID_DEVICE void warp_product_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             const float (&c)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
          "f"(c[3]));
  }
  static SOLID_DEVICE void warp_product_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             const float (&c)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
          "f"(c[3]));
  }
  static SOLID_DEVICE void warp_product_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             const float (&c)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
          "f"(c[3]));
  }

 private:
  int used_ = 0;
};

}  // namespace solid
