// What the checks share: repeatable inputs, memory of exact size, comparison with float64, the tally.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "common/isa.h"

namespace solid::check {

// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t end) { return int64_t(next() >> 1) % end; }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool chance(int percent) { return below(100) < percent; }
  double uniform() { return double(int64_t(next() >> 11)) * 0x1p-52 - 1; }  // [-1, 1)
  int64_t pick(std::initializer_list<int64_t> values) {
    return values.begin()[below(int64_t(values.size()))];
  }
  // Around the edges of vectors and tiles.
  int64_t size() { return pick({1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 64, 65}); }

 private:
  uint64_t state_;
};

inline double value_of(float v) { return v; }
inline double value_of(double v) { return v; }
inline double value_of(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

template <class T>
T rounded(double v) {
  return T(v);
}
template <>
inline uint16_t rounded<uint16_t>(double v) {  // v has at most 8 bits: nothing is lost
  const float f = float(v);
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return uint16_t(bits >> 16);
}

// `count` values that end where their heap block ends, so that AddressSanitizer sees the first one past them;
// `lead` unused ones before them move them off an even address.
template <class T>
class Array {
 public:
  explicit Array(int64_t count, int64_t lead = 0)
      : count_(count), lead_(lead), base_(static_cast<T*>(std::malloc(size_t(count + lead) * sizeof(T)))) {}
  Array(const std::vector<double>& values, int64_t lead) : Array(int64_t(values.size()), lead) {
    for (size_t i = 0; i < values.size(); ++i) data()[i] = rounded<T>(values[i]);
  }
  Array(Array&& other) noexcept : count_(other.count_), lead_(other.lead_), base_(other.base_) {
    other.base_ = nullptr;
  }
  Array& operator=(Array&&) = delete;
  ~Array() { std::free(base_); }

  T* data() const { return base_ + lead_; }
  int64_t count() const { return count_; }
  int64_t bytes() const { return count_ * int64_t(sizeof(T)); }
  T& operator[](int64_t i) const { return data()[i]; }
  // What a kernel finds in memory that it has to write: another pattern for each number of threads.
  void poison(int threads) const { std::memset(data(), threads % 2 ? 0xFF : 0x00, size_t(bytes())); }

 private:
  int64_t count_, lead_;
  T* base_;
};

// One case: what is checked, and what was found wrong. `bits` collects float32 results of the baseline.
class Tally {
 public:
  int64_t cases = 0, runs = 0, values = 0, failures = 0;
  uint64_t bits = 0xCBF29CE484222325;
  std::vector<Isa> levels;
  std::string shape;  // of the case at hand

  void fail(const std::string& what);
  void expect(bool holds, const std::string& what) {
    ++values;
    if (!holds) fail(what);
  }

  // Each value within `tolerance` of the largest expected one (and of 1); NaN and infinities as they are.
  template <class T>
  void near(const std::string& name, const Array<T>& found, const std::vector<double>& expected,
            double tolerance) {
    double largest = 1;
    for (const double v : expected)
      if (v - v == 0 && (v > largest || -v > largest)) largest = v > 0 ? v : -v;
    for (int64_t i = 0; i < found.count(); ++i) {
      const double v = value_of(found[i]), e = expected[size_t(i)];
      const double off = v > e ? v - e : e - v;
      const bool same = e != e ? v != v : e - e != 0 ? v == e : off <= tolerance * largest;
      ++values;
      if (same) continue;
      return fail(name + "[" + std::to_string(i) + "]: expected " + std::to_string(e) + ", got " +
                  std::to_string(v));
    }
  }

  // Bit by bit.
  template <class T>
  void same(const std::string& name, const Array<T>& found, const Array<T>& expected) {
    values += found.count();
    if (std::memcmp(found.data(), expected.data(), size_t(found.bytes())) != 0)
      fail(name + ": expected the bits of one thread, got others");
  }

  template <class T>
  void collect(const Array<T>& found) {
    if (sizeof(T) == 8 || isa_in_use() != Isa::baseline) return;  // float64 asks the C library for tanh
    for (int64_t i = 0; i < found.count(); ++i) {
      uint64_t word = 0x7FC00000;  // NaN, whatever its sign and payload
      const double v = value_of(found[i]);
      if (v == v) std::memcpy(&word, &v, sizeof word);
      bits = (bits ^ word) * 0x100000001B3;
    }
  }

  // body(threads) for every level and 1, 2, 3 threads.
  template <class Body>
  void for_levels(const Body& body) {
    for (const Isa level : levels) {
      set_isa(level);
      for (int threads = 1; threads <= 3; ++threads) {
        ++runs;
        body(threads);
      }
    }
  }
};

// One case each, drawn from `random`.
void check_catalogue_cross_entropy(Tally& tally, Random random);
void check_nearest_code(Tally& tally, Random random);
void check_segment_sum(Tally& tally, Random random);
void check_dynamic_mlp(Tally& tally, Random random);
void check_gru(Tally& tally, Random random);
void check_dropout(Tally& tally, Random random);
void check_low_rank(Tally& tally, Random random);

}  // namespace solid::check
