// The team of the thread check: see common/parallel.h.
#include <atomic>
#include <thread>
#include <vector>

namespace solid::check {

void run_team(int team, void (*work)(const void* of), const void* of);
void give_way();

// Nobody starts before all are there, and each gives way after a block: otherwise the first thread would have
// done a small case before the others come to life, and no two threads would ever meet.
void run_team(int team, void (*work)(const void* of), const void* of) {
  std::atomic<int> missing{team};
  const auto start = [&] {
    for (--missing; missing > 0;) give_way();
    work(of);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < team; ++i) others.emplace_back(start);
  start();
  for (std::thread& other : others) other.join();
}

void give_way() { std::this_thread::yield(); }

}  // namespace solid::check
