// The shared memory of one block, with a record of who read and wrote each pair of bytes.
//
// Two accesses of one place by different threads, at least one of them a write, are a race unless a barrier
// lies between them: `sync`, or `sync_warp` for lanes of one warp. Epochs count barriers. Of the writers the
// last is kept (an earlier one without a barrier between was reported then); of the readers since the last
// `sync` all warps, and of the last warp that read all lanes since its last `sync_warp`: where more than one
// warp has read, whoever writes races with another warp, so that no more is needed.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace solid_test {

struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class SharedMemory {
 public:
  SharedMemory(int64_t size, int threads)
      : size_(size),
        bytes_(static_cast<unsigned char*>(std::malloc(size_t(size > 0 ? size : 1)))),
        places_(size_t(size + 1) / 2),
        warp_epochs_(size_t(threads / 32), 0) {
    std::memset(bytes_, 0xff, size_t(size));  // NaN, should a check fail to see that it is unwritten
  }
  ~SharedMemory() { std::free(bytes_); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  int64_t size() const { return size_; }
  void sync() { ++epoch_; }
  void sync_warp(int warp) { ++warp_epochs_[size_t(warp)]; }

  void read(int thread, int64_t at, void* to, int64_t count) {
    for (int64_t place = at / 2; place < (at + count + 1) / 2; ++place) check_read(thread, place);
    std::memcpy(to, bytes_ + at, size_t(count));
  }

  void write(int thread, int64_t at, const void* from, int64_t count, bool atomic = false) {
    for (int64_t place = at / 2; place < (at + count + 1) / 2; ++place) check_write(thread, place, atomic);
    std::memcpy(bytes_ + at, from, size_t(count));
  }

  // What an atomic operation finds; it is no access of its own.
  void peek(int thread, int64_t at, void* to, int64_t count) {
    for (int64_t place = at / 2; place < (at + count + 1) / 2; ++place)
      if (places_[size_t(place)].writer == kNobody) fail(thread, "reads", place, "that nothing wrote");
    std::memcpy(to, bytes_ + at, size_t(count));
  }

  // An asynchronous copy under way: nobody may touch its destination until it has arrived.
  void expect_copy(int thread, int64_t at, int64_t count) {
    for (int64_t place = at / 2; place < (at + count + 1) / 2; ++place) {
      check_write(thread, place, false);
      places_[size_t(place)].copying = true;
    }
  }
  void arrive(int thread, int64_t at, const void* from, int64_t count) {
    for (int64_t place = at / 2; place < (at + count + 1) / 2; ++place)
      places_[size_t(place)].copying = false;
    write(thread, at, from, count);
  }

 private:
  static constexpr int kNobody = -1;
  static constexpr int kSeveral = -2;  // atomically; kSeveral - 1 - warp where all are of that warp

  struct Place {
    int writer = kNobody;
    bool atomic = false;
    bool copying = false;
    int64_t write_epoch = 0, write_warp_epoch = 0;
    int64_t read_epoch = -1, read_warp_epoch = -1;
    uint32_t read_warps = 0, read_lanes = 0;
  };

  int64_t warp_epoch(int thread) const { return warp_epochs_[size_t(thread / 32)]; }

  bool wrote_before(const Place& p, int thread) const {
    if (p.writer == kNobody || p.write_epoch < epoch_ || p.writer == thread) return true;
    return warp_of(p.writer) == thread / 32 && p.write_warp_epoch < warp_epoch(thread);
  }

  [[noreturn]] void fail(int thread, const char* does, int64_t place, const std::string& what) const {
    throw KernelError("thread " + std::to_string(thread) + " " + does + " byte " + std::to_string(2 * place) +
                      " of shared memory " + what);
  }

  // The warp of a writer or of several ones, -1 if they are of more than one.
  static int warp_of(int writer) { return writer >= 0 ? writer / 32 : kSeveral - 1 - writer; }
  static int both(int writer, int thread) {
    return warp_of(writer) == thread / 32 ? kSeveral - 1 - thread / 32 : kSeveral;
  }

  static std::string who(int writer) {
    return writer <= kSeveral ? "several threads" : "thread " + std::to_string(writer);
  }

  void check_read(int thread, int64_t place) {
    Place& p = places_[size_t(place)];
    if (p.copying) fail(thread, "reads", place, "while an asynchronous copy to it is under way");
    if (p.writer == kNobody) fail(thread, "reads", place, "that nothing wrote");
    if (!wrote_before(p, thread))
      fail(thread, "reads", place, "in a race: " + who(p.writer) + " wrote it, no barrier between");
    const uint32_t lane = 1u << (thread % 32), warp = 1u << (thread / 32);
    if (p.read_epoch != epoch_) p.read_epoch = epoch_, p.read_warps = 0;
    if (p.read_warps != warp || p.read_warp_epoch != warp_epoch(thread)) p.read_lanes = 0;
    p.read_warps |= warp, p.read_warp_epoch = warp_epoch(thread), p.read_lanes |= lane;
  }

  void check_write(int thread, int64_t place, bool atomic) {
    Place& p = places_[size_t(place)];
    if (p.copying) fail(thread, "writes", place, "while an asynchronous copy to it is under way");
    const bool before = wrote_before(p, thread);
    if (!before && !(atomic && p.atomic))
      fail(thread, "writes", place, "in a race: " + who(p.writer) + " wrote it, no barrier between");
    if (p.read_epoch == epoch_) {
      const uint32_t warp = 1u << (thread / 32), lane = 1u << (thread % 32);
      const bool lanes = p.read_warp_epoch == warp_epoch(thread) && (p.read_lanes & ~lane) != 0;
      if ((p.read_warps & ~warp) != 0 || lanes)
        fail(thread, "writes", place, "in a race: another thread read it, no barrier between");
    }
    p.writer = before ? thread : both(p.writer, thread), p.atomic = atomic;
    p.write_epoch = epoch_, p.write_warp_epoch = warp_epoch(thread);
  }

  int64_t size_;
  unsigned char* bytes_;
  std::vector<Place> places_;
  std::vector<int64_t> warp_epochs_;
  int64_t epoch_ = 0;
};

}  // namespace solid_test
