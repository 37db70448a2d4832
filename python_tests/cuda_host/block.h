// The host policy: what `DeviceBlock` (csrc/cuda/block.cuh) does on a GPU, done by fibres, with every rule
// checked. One block runs at a time, its threads one at a time, in the order that `Order` says; a thread runs
// until a barrier or an exchange within its warp, so that warps lie as far apart as barriers allow.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/status.h"
#include "cuda/numbers.h"
#include "cuda/stream.h"
#include "cuda_host/fibre.h"
#include "cuda_host/shared_memory.h"

namespace solid_test {

using solid::Pack;

// Which thread goes on, and which block comes next: 0 the lowest, 1 the highest, otherwise a random one, from
// this seed.
struct Order {
  int64_t seed = 0;
};

// An array, so that its address is the same in every source: one literal in each would have an address each.
inline constexpr char kSyncWarp[] = "sync_warp";

enum class Wait { kReady, kWarp, kBlock, kDone };

// What a lane brings to an exchange with its warp: the name says at which operation it waits.
struct Offer {
  const char* name = nullptr;
  unsigned char bytes[48];
};

class Team {
 public:
  Team(int threads, int64_t shared_bytes) : memory(shared_bytes, threads), threads_(size_t(threads)) {}

  // Runs body(thread) on every thread to its end.
  void run(std::vector<std::unique_ptr<Fibre>>& fibres, Order order, const std::function<void(int)>& body) {
    std::mt19937_64 random{uint64_t(order.seed)};
    const int count = int(threads_.size());
    for (int t = 0; t < count; ++t) {
      fibres_.push_back(fibres[size_t(t)].get());
      fibres_.back()->start([this, t, &body] {
        try {
          body(t);
        } catch (const KernelError& error) {
          failure_ = error.what();
        }
      });
    }
    release(0, count);
    for (int done = 0; done < count;) {
      const int t = next(order, random);
      if (t < 0) throw KernelError(standstill());
      ready_[t / 32] &= ~(1u << (t % 32));
      Thread& thread = threads_[size_t(t)];
      if (fibres_[size_t(t)]->resume()) thread.wait = Wait::kDone, ++done;
      if (!failure_.empty()) throw KernelError(failure_);
      const int warp = t / 32 * 32;
      if (thread.wait == Wait::kWarp && all(warp, 32, Wait::kWarp)) {
        if (thread.at == kSyncWarp) memory.sync_warp(warp / 32);
        release(warp, 32);
      }
      if (thread.wait == Wait::kBlock && all(0, count, Wait::kBlock)) {
        memory.sync();
        release(0, count);
      }
    }
  }

  void wait_block(int thread, const char* name) {
    threads_[size_t(thread)].at = name;
    wait(thread, Wait::kBlock);
  }

  // Offers of all lanes of the thread's warp, valid until its next exchange but one.
  const Offer* exchange(int thread, const char* name, const void* bytes, size_t size) {
    Thread& self = threads_[size_t(thread)];
    std::vector<Offer>& offers = offers_[self.exchanges % 2];
    offers.resize(threads_.size());
    ++self.exchanges;
    Offer& offer = offers[size_t(thread)];
    offer.name = self.at = name;
    if (size > sizeof offer.bytes) throw KernelError("an exchange of more than 48 bytes");
    if (size > 0) std::memcpy(offer.bytes, bytes, size);
    wait(thread, Wait::kWarp);
    const Offer* warp = offers.data() + thread / 32 * 32;
    for (int lane = 0; lane < 32; ++lane)
      if (std::strcmp(warp[lane].name, name) != 0)
        throw KernelError("lanes of one warp wait at different operations: " + std::string(name) + " and " +
                          warp[lane].name);
    return warp;
  }

  SharedMemory memory;

 private:
  struct Thread {
    Wait wait = Wait::kReady;
    size_t exchanges = 0;
    const char* at = "the start";
  };

  void wait(int thread, Wait what) {
    threads_[size_t(thread)].wait = what;
    fibres_[size_t(thread)]->yield();
  }

  bool all(int first, int count, Wait what) const {
    for (int t = first; t < first + count; ++t)
      if (threads_[size_t(t)].wait != what) return false;
    return true;
  }

  void release(int first, int count) {
    for (int t = first; t < first + count; ++t) threads_[size_t(t)].wait = Wait::kReady;
    for (int warp = first / 32; warp < (first + count) / 32; ++warp) ready_[warp] = 0xffffffffu;
  }

  // The thread that goes on, -1 if none can.
  int next(Order order, std::mt19937_64& random) const {
    const int warps = int(threads_.size()) / 32;
    const int skip = order.seed > 1 ? int(random() % uint64_t(warps)) : 0;
    for (int i = 0; i < warps; ++i) {
      const int warp = order.seed == 1 ? warps - 1 - i : (i + skip) % warps;
      const uint32_t ready = ready_[warp];
      if (ready == 0) continue;
      int lane = __builtin_ctz(ready);
      if (order.seed == 1) lane = 31 - __builtin_clz(ready);
      if (order.seed > 1)
        for (lane = int(random() % 32); (ready >> lane & 1) == 0;) lane = (lane + 1) % 32;
      return warp * 32 + lane;
    }
    return -1;
  }

  std::string standstill() const {
    std::string message = "threads wait for each other:";
    for (int t = 0; t < int(threads_.size()); ++t) {
      const std::string at = threads_[size_t(t)].wait == Wait::kDone ? "the end" : threads_[size_t(t)].at;
      const std::string before = t == 0                                        ? ""
                                 : threads_[size_t(t - 1)].wait == Wait::kDone ? "the end"
                                                                               : threads_[size_t(t - 1)].at;
      if (at != before) message += " thread " + std::to_string(t) + " and on at " + at + ";";
    }
    message.pop_back();
    return message;
  }

  std::vector<Thread> threads_;
  std::vector<Fibre*> fibres_;
  std::vector<Offer> offers_[2];
  uint32_t ready_[32] = {};
  std::string failure_;
};

template <class T>
class HostShared {
  static_assert(sizeof(T) % 2 == 0, "shared memory is watched by pairs of bytes");

 public:
  HostShared(Team* team, int thread, int64_t first, int count)
      : team_(team), thread_(thread), first_(first), count_(count) {}

  T operator[](int i) const {
    T value;
    team_->memory.read(thread_, at(i, 1), &value, sizeof value);
    return value;
  }
  void set(int i, T value) { team_->memory.write(thread_, at(i, 1), &value, sizeof value); }

  template <int n>
  Pack<T, n> pack(int i) const {
    Pack<T, n> values;
    team_->memory.read(thread_, aligned(at(i, n), sizeof values), &values, sizeof values);
    return values;
  }
  template <int n>
  void set_pack(int i, Pack<T, n> values) {
    team_->memory.write(thread_, aligned(at(i, n), sizeof values), &values, sizeof values);
  }

  T add(int i, T value) {
    T before;
    team_->memory.peek(thread_, at(i, 1), &before, sizeof before);
    value += before;
    team_->memory.write(thread_, at(i, 1), &value, sizeof value, true);
    return before;
  }

  HostShared part(int first, int count) const {
    if (first < 0 || count < 0 || first + count > count_) outside(first, count);
    return HostShared(team_, thread_, first_ + first * int64_t(sizeof(T)), count);
  }

  template <class U>
  HostShared<U> as() const {
    return HostShared<U>(team_, thread_, first_, int(count_ * sizeof(T) / sizeof(U)));
  }

  int64_t at(int i, int n) const {
    if (i < 0 || i + n > count_) outside(i, n);
    return first_ + i * int64_t(sizeof(T));
  }
  int64_t aligned(int64_t address, size_t size) const {
    if (address % int64_t(size) != 0)
      throw KernelError("thread " + std::to_string(thread_) + " reads or writes " + std::to_string(size) +
                        " bytes at byte " + std::to_string(address) +
                        " of shared memory, which is not aligned");
    return address;
  }

 private:
  [[noreturn]] void outside(int i, int n) const {
    throw KernelError("thread " + std::to_string(thread_) + " is out of bounds: elements " +
                      std::to_string(i) + " .. " + std::to_string(i + n - 1) + " of a shared array of " +
                      std::to_string(count_));
  }

  Team* team_;
  int thread_;
  int64_t first_;
  int count_;
};

// What the sum of a matrix unit may lose: terms are cut off below the last bit of the largest one's 24.
inline float matrix_sum(double c, const double* products, int count) {
  double largest = std::fabs(c);
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::fabs(products[i]));
  if (!(largest > 0) || !std::isfinite(largest)) {
    for (int i = 0; i < count; ++i) c += products[i];
    return float(c);
  }
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
  double sum = std::trunc(c / unit);
  for (int i = 0; i < count; ++i) sum += std::trunc(products[i] / unit);
  return float(sum * unit);
}

template <int threads_>
class HostBlock {
 public:
  static constexpr int kThreads = threads_;
  static constexpr int kWarps = kThreads / 32;
  template <class T>
  using Shared = HostShared<T>;

  HostBlock(Team* team, int thread, int64_t index, int64_t blocks)
      : team_(team), thread_(thread), index_(index), blocks_(blocks) {}

  int thread() const { return thread_; }
  int lane() const { return thread_ % 32; }
  int warp() const { return thread_ / 32; }
  int64_t index() const { return index_; }
  int64_t blocks() const { return blocks_; }

  template <class T>
  HostShared<T> shared(int count) {
    const int64_t first = used_;
    used_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
    if (used_ > team_->memory.size())
      throw KernelError("expected " + std::to_string(used_) + " bytes of shared memory, got " +
                        std::to_string(team_->memory.size()));
    return HostShared<T>(team_, thread_, first, count);
  }

  void sync() { team_->wait_block(thread_, "sync"); }
  void sync_warp() { team_->exchange(thread_, kSyncWarp, nullptr, 0); }

  template <class T>
  T warp_get(T value, int from) {
    if (from < 0 || from > 31) throw KernelError("warp_get: expected a lane in 0 .. 31");
    return offered<T>(team_->exchange(thread_, "warp_get", &value, sizeof value), from);
  }
  template <class T>
  T warp_xor(T value, int lanes) {
    return offered<T>(team_->exchange(thread_, "warp_xor", &value, sizeof value), lane() ^ lanes);
  }
  uint32_t warp_vote(bool value) {
    const Offer* warp = team_->exchange(thread_, "warp_vote", &value, sizeof value);
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= uint32_t(offered<bool>(warp, lane)) << lane;
    return votes;
  }

  template <class T>
  T add(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
  }
  void fence() {}

  template <int n, class T>
  void copy_async(HostShared<T>& to, int i, const T* from, bool present = true) {
    constexpr int64_t kBytes = n * int64_t(sizeof(T));
    static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "copy_async: expected 4, 8 or 16 bytes");
    const int64_t at = to.aligned(to.at(i, n), kBytes);
    if (present && reinterpret_cast<uintptr_t>(from) % kBytes != 0)
      throw KernelError("copy_async from an address that is not aligned");
    team_->memory.expect_copy(thread_, at, kBytes);
    copies_.back().push_back({at, present ? from : nullptr, kBytes});
  }
  void commit_copies() { copies_.emplace_back(); }
  template <int pending>
  void wait_copies() {
    // copies_.back() is not committed yet.
    while (int(copies_.size()) > pending + 1) {
      for (const Copy& copy : copies_.front()) {
        const std::vector<unsigned char> zeros(size_t(copy.bytes), 0);
        team_->memory.arrive(thread_, copy.to, copy.from != nullptr ? copy.from : zeros.data(), copy.bytes);
      }
      copies_.erase(copies_.begin());
    }
  }

  void warp_load_matrices(const HostShared<uint32_t>& words, int row, uint32_t (&to)[4]) {
    if (words.at(row, 4) % 16 != 0) throw KernelError("warp_load_matrices from a row that is not aligned");
    const Offer* warp = team_->exchange(thread_, "warp_load_matrices", &row, sizeof row);
    for (int matrix = 0; matrix < 4; ++matrix)
      to[matrix] = words[offered<int>(warp, matrix * 8 + lane() / 4) + lane() % 4];
  }

  void warp_product_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
    product<16>("warp_product_bf16", d, a, b, c, [](uint32_t word, int k) {
      return double(solid::to_float(solid::Bf16{uint16_t(word >> (k % 2 * 16))}));
    });
  }
  void warp_product_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
    product<16>("warp_product_half", d, a, b, c, [](uint32_t word, int k) {
      return double(solid::to_float(solid::Half{uint16_t(word >> (k % 2 * 16))}));
    });
  }
  void warp_product_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
    product<8>("warp_product_tf32", d, a, b, c,
               [](uint32_t word, int) { return double(solid::bit_cast<float>(word & 0xffffe000u)); });
  }

  // The kernel has ended.
  void finish() const {
    if (copies_.size() > 1 || !copies_.back().empty())
      throw KernelError("ends with asynchronous copies under way");
  }

 private:
  struct Copy {
    int64_t to;
    const void* from;
    int64_t bytes;
  };
  struct Fragments {
    uint32_t a[4], b[2];
  };

  template <class T>
  static T offered(const Offer* warp, int lane) {
    T value;
    std::memcpy(&value, warp[lane & 31].bytes, sizeof value);
    return value;
  }

  // Depth k = 8 (one number a word) or 16 (two); both have four words of a and two of b a lane.
  template <int depth, class Number>
  void product(const char* name, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
               const float (&c)[4], const Number& number) {
    constexpr int kEach = depth / 8;
    Fragments mine;
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    const Offer* warp = team_->exchange(thread_, name, &mine, sizeof mine);
    Fragments all[32];
    for (int l = 0; l < 32; ++l) all[l] = offered<Fragments>(warp, l);
    for (int i = 0; i < 4; ++i) {
      const int row = lane() / 4, column = lane() % 4 * 2 + i % 2, lower = i / 2;
      double products[depth];
      for (int k = 0; k < depth; ++k) {
        const int t = k / kEach % 4, half = k / (4 * kEach);
        products[k] =
            number(all[row * 4 + t].a[lower + 2 * half], k) * number(all[column * 4 + t].b[half], k);
      }
      d[i] = matrix_sum(double(c[i]), products, depth);
    }
  }

  Team* team_;
  int thread_;
  int64_t index_, blocks_;
  int64_t used_ = 0;
  std::vector<std::vector<Copy>> copies_ = std::vector<std::vector<Copy>>(1);
};

// Runs a kernel's grid; throws KernelError.
template <class Kernel>
void run_grid(int64_t blocks, int64_t shared_bytes, const typename Kernel::Args& args, Order order) {
  static_assert(Kernel::kThreads % 32 == 0 && Kernel::kThreads <= 1024, "kThreads: expected whole warps");
  static std::vector<std::unique_ptr<Fibre>> fibres;
  while (int(fibres.size()) < Kernel::kThreads) fibres.push_back(std::make_unique<Fibre>());
  std::vector<int64_t> numbers(static_cast<size_t>(blocks));
  for (int64_t i = 0; i < blocks; ++i) numbers[size_t(i)] = order.seed == 1 ? blocks - 1 - i : i;
  std::mt19937_64 random{uint64_t(order.seed)};
  if (order.seed > 1) std::shuffle(numbers.begin(), numbers.end(), random);
  for (const int64_t index : numbers) {
    Team team(Kernel::kThreads, shared_bytes);
    team.run(fibres, order, [&](int thread) {
      HostBlock<Kernel::kThreads> block(&team, thread, index, blocks);
      Kernel::run(block, args);
      block.finish();
    });
  }
}

constexpr int64_t kEveryDevice =
    99 * 1024;  // shared memory that a block has on sm_86, 89 and 120, and so on all

// Where DeviceLauncher starts kernels on a GPU; shared_bytes: what a block of that GPU may have.
class HostLauncher {
 public:
  explicit HostLauncher(Order order, int64_t shared_bytes = kEveryDevice)
      : order_(order), shared_bytes_(shared_bytes) {}

  // Of a device with so much; one with less than there is stands for tiles that do not fit.
  HostLauncher with_shared(int64_t bytes) const {
    return HostLauncher(order_, bytes > kEveryDevice ? bytes : kEveryDevice);
  }

  template <class Kernel>
  solid::Status run(int64_t blocks, int64_t shared_bytes, const typename Kernel::Args& args) const {
    if (blocks > solid::kMostBlocks) return solid::Status::kTooLarge;
    if (shared_bytes > shared_bytes_)
      throw KernelError("expected at most " + std::to_string(shared_bytes_) +
                        " bytes of shared memory for a block, got " + std::to_string(shared_bytes));
    run_grid<Kernel>(blocks, shared_bytes, args, order_);
    return solid::Status::kOk;
  }

 private:
  Order order_;
  int64_t shared_bytes_;
};

}  // namespace solid_test
