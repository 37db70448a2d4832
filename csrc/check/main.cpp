// check_kernels [--cases N] [--case I] [--only KERNEL] [--isa LEVEL] [--bits] [--plant BUG]
//
// Calls every kernel at every instruction set that this processor runs, with N drawn cases each, on 1 to 3
// threads, over memory of exact size filled with different patterns; compares with float64 loops, and between
// the numbers of threads bit by bit. One line sums up; the exit status is 1 after a mismatch.
//
//   --case I      case I alone, as a failure names it
//   --bits        also a hash of the baseline's float32 results: the same on every processor
//   --plant BUG   makes a mistake that a sanitizer must stop at: overrun, misaligned or race
#include <atomic>
#include <cstdio>
#include <thread>

#include "check/check.h"
#include "common/parallel.h"
#include "nearest_code/nearest_code.h"

namespace solid::check {

void Tally::fail(const std::string& what) {
  if (++failures <= 20)
    std::fprintf(stderr, "check_kernels: %s, case %lld, %s: %s\n", isa_name(isa_in_use()),
                 static_cast<long long>(cases - 1), shape.c_str(), what.c_str());
}

namespace {

struct Kernel {
  const char* name;
  void (*check)(Tally&, Random);
};

constexpr Kernel kKernels[] = {{"catalogue_cross_entropy", &check_catalogue_cross_entropy},
                               {"nearest_code", &check_nearest_code},
                               {"segment_sum", &check_segment_sum},
                               {"dynamic_mlp", &check_dynamic_mlp},
                               {"gru", &check_gru},
                               {"dropout", &check_dropout},
                               {"low_rank", &check_low_rank}};

// The caller's mistakes, made inside the kernels: room for one index too few, a float at an odd address, a
// sum that threads share.
bool plant(const std::string& bug) {
  if (bug == "race") {
    int64_t sum = 0;
    std::atomic<int> arrived{0};
    for_each_block(2, 2, [&](int64_t block) {
      for (++arrived; arrived < 2;) std::this_thread::yield();
      for (int i = 0; i < 1000; ++i) sum += block;
    });
    std::printf("check_kernels: sum %lld\n", static_cast<long long>(sum));
    return true;
  }
  if (bug != "overrun" && bug != "misaligned") return false;
  const Array<char> x(4 * 8 * 4 + 1);
  std::memset(x.data(), 0, size_t(x.bytes()));
  const Array<float> workspace(nearest_code_workspace(2, 8, 4)), codebook(std::vector<double>(2 * 8), 0),
      quantized(4 * 8), distance(4);
  const Array<int64_t> index(bug == "overrun" ? 3 : 4);
  NearestCode call;
  call.x = x.data() + (bug == "misaligned"), call.x_stride = 8, call.rows = 4, call.dim = 8;
  call.codebook = codebook.data(), call.num_codes = 2, call.workspace = workspace.data();
  call.index = index.data(), call.quantized = quantized.data(), call.distance = distance.data();
  SOLID_IN_USE(nearest_code_float)(call);
  return true;
}

int usage() {
  std::fprintf(stderr,
               "check_kernels: expected [--cases N] [--case I] "
               "[--only catalogue_cross_entropy|nearest_code|segment_sum|dynamic_mlp|gru|dropout|low_rank] "
               "[--isa LEVEL] "
               "[--bits] [--plant overrun|misaligned|race]\n");
  return 2;
}

int run(int count, char** words) {
  int64_t first = 0, end = 200;
  bool bits = false;
  std::string only, bug;
  Tally tally;
  for (int level = 0; level < kIsaCount; ++level)
    if (isa_usable(static_cast<Isa>(level))) tally.levels.push_back(static_cast<Isa>(level));
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--bits") {
      bits = true;
      continue;
    }
    if (++i == count) return usage();
    if (word == "--cases") {
      end = std::atoll(words[i]);
    } else if (word == "--case") {
      first = std::atoll(words[i]), end = first + 1;
    } else if (word == "--only") {
      only = words[i];
    } else if (word == "--isa") {
      Isa level;
      if (!isa_parse(words[i], &level) || !isa_usable(level)) return usage();
      tally.levels = {level};
    } else if (word == "--plant") {
      bug = words[i];
    } else {
      return usage();
    }
  }
  if (!bug.empty()) {
    set_isa(tally.levels.back());
    return plant(bug) ? 0 : usage();
  }
  for (const Kernel& kernel : kKernels) {
    if (!only.empty() && only != kernel.name) continue;
    for (int64_t i = first; i < end; ++i) {
      tally.cases = i + 1;
      kernel.check(tally, Random(uint64_t(i) * 1000003));
    }
  }
  if (tally.runs == 0) return usage();
  std::string levels;
  for (const Isa level : tally.levels) levels += std::string(levels.empty() ? "" : ", ") + isa_name(level);
  if (bits) std::printf("check_kernels: bits %016llx\n", static_cast<unsigned long long>(tally.bits));
  std::printf("check_kernels: %s; %lld calls, %lld values compared, %lld wrong\n", levels.c_str(),
              static_cast<long long>(tally.runs), static_cast<long long>(tally.values),
              static_cast<long long>(tally.failures));
  return tally.failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace solid::check

int main(int count, char** words) { return solid::check::run(count, words); }
