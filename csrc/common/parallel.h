// The thread loop of all kernels.
//
// `for_each_block(count, threads, body)` calls body(block) for block = 0 .. count - 1; a thread that is done
// takes the next block, so that one which the system has put aside holds up no more than its own. The
// division of work into blocks is the kernel's and never depends on `threads`, so a result that is a function
// of its block alone is bitwise the same for any number of threads.
//
// One thread opens no parallel region: a forked child (solid_ext/_native.py gives it one thread) never
// touches the OpenMP pool that its parent left behind. How a thread waits that finds no block left is
// OpenMP's: asleep, unless somebody has set OMP_WAIT_POLICY (there too).
//
// A compiler without OpenMP, as Apple's, starts the team's threads for each loop: some tens of microseconds.
//
// SOLID_CHECK_THREADS: ThreadSanitizer does not see the barriers of GCC's OpenMP and would report every
// parallel region; the thread check (csrc/check) runs the same loop on a team that it sees.
#pragma once

#include <cstdint>

#if !defined(_OPENMP)
#  include <thread>
#  include <vector>
#endif

#if defined(SOLID_CHECK_THREADS)
namespace solid::check {  // csrc/check/threads.cpp
void run_team(int team, void (*work)(const void* of), const void* of);
void give_way();
}  // namespace solid::check
#endif

namespace solid {
namespace {  // each instruction set keeps its own copy: see isa.h

#if defined(SOLID_CHECK_THREADS)
template <class Work>
void run_team(int team, const Work& work) {
  check::run_team(team, [](const void* of) { (*static_cast<const Work*>(of))(); }, &work);
}
#elif defined(_OPENMP)
// work() on each of `team` threads.
template <class Work>
void run_team(int team, const Work& work) {
#  pragma omp parallel num_threads(team)
  work();
}
#else
// work() on at most `team` threads, this one among them: on fewer where the system has no more.
template <class Work>
void run_team(int team, const Work& work) {
  std::vector<std::thread> others;
  try {
    others.reserve(static_cast<size_t>(team - 1));
    while (static_cast<int>(others.size()) < team - 1) others.emplace_back([&work] { work(); });
  } catch (...) {
  }
  work();
  for (std::thread& other : others) other.join();
}
#endif

// body(block) for the blocks that are left.
template <class Body>
void take_blocks(int64_t* next, int64_t count, const Body& body) {
  for (;;) {
#if defined(SOLID_CHECK_THREADS)
    check::give_way();
#endif
    const int64_t block = __atomic_fetch_add(next, int64_t(1), __ATOMIC_RELAXED);
    if (block >= count) return;
    body(block);
  }
}

template <class Body>
void for_each_block(int64_t count, int threads, const Body& body) {
  if (threads <= 1 || count <= 1) {
    for (int64_t block = 0; block < count; ++block) body(block);
    return;
  }
  const int team = static_cast<int64_t>(threads) < count ? threads : static_cast<int>(count);
  int64_t next = 0;
  run_team(team, [&] { take_blocks(&next, count, body); });
}

// body(worker, block): blocks are taken by the workers 0 .. threads - 1 as they come free; which worker has
// which must change no result.
template <class Body>
void for_each_worker(int64_t blocks, int threads, const Body& body) {
  int64_t next = 0;
  const int64_t team = threads < blocks ? threads : blocks;
  for_each_block(team, threads, [&](int64_t worker) {
    take_blocks(&next, blocks, [&](int64_t block) { body(worker, block); });
  });
}

}  // namespace
}  // namespace solid
