// Kernels with a planted mistake each, and the same kernels without it: what the host policy must tell apart.
#include "cuda_host/host.h"

namespace {

using solid_test::HostLauncher;
using solid_test::Values;

struct Planted {
  int mistake;
  const int* from;
  int64_t length;
  int* to;
};

// Every thread writes a word and reads its neighbour's, across warps.
struct Exchange {
  static constexpr int kThreads = 64;
  static constexpr int kBlocks = 1;
  using Args = Planted;
  enum Mistake {
    kNone,
    kNoBarrier,
    kPastTheEnd,
    kUnwritten,
    kSomeLeave,
    kWriteAfterRead,
    kSameWord,
    kPastTheArray
  };

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    auto words = block.template shared<int>(kThreads);
    const int t = block.thread();
    const int64_t at = block.index() * kThreads + t;
    const int value = at < args.length || args.mistake == kPastTheArray ? args.from[at] : 0;
    if (args.mistake != kUnwritten || t != 5) words.set(args.mistake == kSameWord ? t / 2 * 2 : t, value);
    if (args.mistake == kSomeLeave && t >= 32) return;
    if (args.mistake != kNoBarrier) block.sync();
    if (args.mistake == kSameWord) return;
    const int other = words[args.mistake == kPastTheEnd ? t + 1 : kThreads - 1 - t];
    if (args.mistake == kWriteAfterRead) words.set(t, other);
    if (at < args.length) args.to[at] = other;
  }
};

// The same within a warp: shuffles, votes, sync_warp.
struct Lanes {
  static constexpr int kThreads = 64;
  static constexpr int kBlocks = 1;
  using Args = Planted;
  enum Mistake { kNone, kNoWarpBarrier, kShuffleIsNoBarrier, kOtherWarp, kDifferentOperations };

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    auto words = block.template shared<int>(kThreads);
    const int t = block.thread();
    const int64_t at = block.index() * kThreads + t;
    words.set(t, at < args.length ? args.from[at] : 0);
    int extra = 0;
    if (args.mistake == kShuffleIsNoBarrier)
      extra = block.warp_xor(0, 1);
    else if (args.mistake == kDifferentOperations && t % 2 == 0)
      extra = block.warp_vote(false);
    else if (args.mistake != kNoWarpBarrier)
      block.sync_warp();
    const int other = words[args.mistake == kOtherWarp ? t ^ 32 : t ^ 31];
    if (at < args.length) args.to[at] = other + extra;
  }
};

// Copies in flight.
struct Copies {
  static constexpr int kThreads = 64;
  static constexpr int kBlocks = 1;
  using Args = Planted;
  enum Mistake { kNone, kNotWaited, kWaitedForFewer, kNoBarrier, kNotAligned };

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    auto words = block.template shared<int>(4 * kThreads);
    const int t = block.thread();
    const int64_t first = block.index() * 4 * kThreads;
    const int64_t at = first + 4 * t;
    block.template copy_async<4>(words, 4 * t, args.from + at + (args.mistake == kNotAligned && t == 9),
                                 at + 3 < args.length);
    block.commit_copies();
    if (args.mistake == kWaitedForFewer) block.template wait_copies<1>();
    if (args.mistake != kNotWaited && args.mistake != kWaitedForFewer) block.template wait_copies<0>();
    if (args.mistake != kNoBarrier) block.sync();
    for (int i = t; i < 4 * kThreads; i += kThreads)
      if (first + i < args.length) args.to[first + i] = words[4 * kThreads - 1 - i];
    block.template wait_copies<0>();
  }
};

template <class Kernel>
void launch(const HostLauncher& launcher, Values& values) {
  Planted args;
  args.mistake = int(values.next());
  args.length = values.next();
  args.from = values.pointer<const int>();
  args.to = values.pointer<int>();
  const int64_t words = values.next();
  const int64_t blocks = (args.length + words - 1) / words;
  solid_test::expect_ok(launcher.run<Kernel>(blocks, words * 4, args));
}

// A product of fragments, [16 x depth] by [depth x 8], from row-major matrices of float.
struct ProductArgs {
  int kind;  // 0 bf16, 1 half, 2 tf32
  const float *a, *b;
  float* d;
};

struct Product {
  static constexpr int kThreads = 32;
  static constexpr int kBlocks = 1;
  using Args = ProductArgs;

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    const int g = block.lane() / 4, t = block.lane() % 4;
    const auto word = [&](const float* from, int stride) {
      if (args.kind == 0) return solid::pair_of(solid::to_bf16(from[0]), solid::to_bf16(from[stride]));
      if (args.kind == 1) return solid::pair_of(solid::to_half(from[0]), solid::to_half(from[stride]));
      return solid::to_tf32(from[0]);
    };
    const int depth = args.kind == 2 ? 8 : 16, each = depth / 8;
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i)
      a[i] = word(args.a + (g + i % 2 * 8) * depth + t * each + i / 2 * 4 * each, 1);
    for (int i = 0; i < 2; ++i) b[i] = word(args.b + (t * each + i * 4 * each) * 8 + g, 8);
    float d[4];
    const float c[4] = {0, 0, 0, 1};
    if (args.kind == 0) block.warp_product_bf16(d, a, b, c);
    if (args.kind == 1) block.warp_product_half(d, a, b, c);
    if (args.kind == 2) block.warp_product_tf32(d, a, b, c);
    for (int i = 0; i < 4; ++i) args.d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
  }
};

// Eight-by-eight matrices, from 32 rows of four words.
struct Matrices {
  static constexpr int kThreads = 32;
  static constexpr int kBlocks = 1;
  struct Args {
    const uint32_t* from;
    uint32_t* to;
  };

  template <class Block>
  static SOLID_DEVICE void run(Block& block, const Args& args) {
    auto words = block.template shared<uint32_t>(128);
    for (int i = block.lane(); i < 128; i += 32) words.set(i, args.from[i]);
    block.sync_warp();
    uint32_t got[4];
    block.warp_load_matrices(words, block.lane() * 4, got);
    for (int i = 0; i < 4; ++i) args.to[i * 32 + block.lane()] = got[i];
  }
};

const solid_test::Register exchange("planted_exchange", launch<Exchange>);
const solid_test::Register lanes("planted_lanes", launch<Lanes>);
const solid_test::Register copies("planted_copies", launch<Copies>);
const solid_test::Register product("planted_product", [](const HostLauncher& launcher, Values& values) {
  ProductArgs args;
  args.kind = int(values.next());
  args.a = values.pointer<const float>(), args.b = values.pointer<const float>();
  args.d = values.pointer<float>();
  solid_test::expect_ok(launcher.run<Product>(1, 0, args));
});
const solid_test::Register matrices("planted_matrices", [](const HostLauncher& launcher, Values& values) {
  Matrices::Args args;
  args.from = values.pointer<const uint32_t>(), args.to = values.pointer<uint32_t>();
  solid_test::expect_ok(launcher.run<Matrices>(1, 512, args));
});

}  // namespace
