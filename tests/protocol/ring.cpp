// The exchange of the persistent kernels by itself, with threads for warps and std::atomic for flags, under
// ThreadSanitizer: the states are plain memory here, so that any access which the flags and barriers do not
// order is a data race that it reports. Atomic fences are unknown to ThreadSanitizer: the flag is read once
// more, as an acquire, where the kernels fence after they have polled.
#include <atomic>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace {

enum class Fault {
  none,
  one_slot,
  no_release,
  no_acquire,
  no_barrier_after_products,
  no_barrier_before_flag,
  one_producer
};

constexpr int kWarps = 2, kSteps = 12, kChunks = 2;  // each warp of each block publishes a term

struct Group {
  explicit Group(int blocks)
      : slots(2 * kChunks * blocks * kWarps), flags(new std::atomic<unsigned>[blocks]) {
    for (int block = 0; block < blocks; ++block) flags[block] = 0;
  }
  std::vector<unsigned> slots;
  std::unique_ptr<std::atomic<unsigned>[]> flags;
};

unsigned published(unsigned sum, int block, int warp) {
  return sum * 1664525u + static_cast<unsigned>(block * kWarps + warp);
}

// What warp `warp` of block `block` does. Each warp multiplies the terms of its half of the blocks; the sums
// of all warps make the next state.
unsigned run(Group& group, int blocks, int block, int warp, std::barrier<>& barrier,
             std::vector<unsigned>& partials, Fault fault) {
  const auto slot = [&](int state, int chunk, int from, int term) -> unsigned& {
    const int half = fault == Fault::one_slot ? 0 : state % 2;
    return group.slots[((half * kChunks + chunk) * blocks + from) * kWarps + term];
  };
  const int first = blocks * warp / kWarps, last = blocks * (warp + 1) / kWarps - 1;
  unsigned result = 0;
  for (int chunk = 0; chunk < kChunks; ++chunk) slot(0, chunk, block, warp) = published(1, block, warp);
  barrier.arrive_and_wait();
  if (warp == 0) group.flags[block].store(kChunks, std::memory_order_release);
  for (int step = 0; step < kSteps; ++step) {
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const auto count = static_cast<unsigned>(step * kChunks + chunk + 1);
      for (int other = first; other <= (fault == Fault::one_producer ? first : last); ++other) {
        while (group.flags[other].load(std::memory_order_relaxed) < count) std::this_thread::yield();
        if (fault != Fault::no_acquire) (void)group.flags[other].load(std::memory_order_acquire);
      }
      unsigned sum = 0;
      for (int other = first; other <= last; ++other)
        for (int term = 0; term < kWarps; ++term) sum += slot(step, chunk, other, term);
      partials[warp] = sum;
      if (fault != Fault::no_barrier_after_products) barrier.arrive_and_wait();
      unsigned total = 0;
      for (int from = 0; from < kWarps; ++from) total += partials[from];
      slot(step + 1, chunk, block, warp) = published(total, block, warp);
      result += total;
      if (fault != Fault::no_barrier_before_flag) barrier.arrive_and_wait();
      if (warp == 0)
        group.flags[block].store(count + kChunks, fault == Fault::no_release ? std::memory_order_relaxed
                                                                             : std::memory_order_release);
    }
  }
  return result;
}

std::vector<unsigned> run_group(int blocks, Fault fault) {
  Group group(blocks);
  std::vector<std::unique_ptr<std::barrier<>>> barriers;
  std::vector<std::vector<unsigned>> partials(blocks, std::vector<unsigned>(kWarps));
  for (int block = 0; block < blocks; ++block) barriers.push_back(std::make_unique<std::barrier<>>(kWarps));
  std::vector<unsigned> results(blocks * kWarps);
  std::vector<std::thread> threads;
  for (int i = 0; i < blocks * kWarps; ++i)
    threads.emplace_back([&, i] {
      results[i] =
          run(group, blocks, i / kWarps, i % kWarps, *barriers[i / kWarps], partials[i / kWarps], fault);
    });
  for (std::thread& thread : threads) thread.join();
  return results;
}

// The same states, one after another.
unsigned expected(int blocks) {
  unsigned result = 0;
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    unsigned total = 0;
    for (int i = 0; i < blocks * kWarps; ++i) total += published(1, i / kWarps, i % kWarps);
    for (int step = 0; step < kSteps; ++step) {
      result += total;
      unsigned next = 0;
      for (int i = 0; i < blocks * kWarps; ++i) next += published(total, i / kWarps, i % kWarps);
      total = next;
    }
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  const char* const names[] = {"none",
                               "one_slot",
                               "no_release",
                               "no_acquire",
                               "no_barrier_after_products",
                               "no_barrier_before_flag",
                               "one_producer"};
  const int blocks = argc > 1 ? std::atoi(argv[1]) : 4;
  const char* const wanted = argc > 2 ? argv[2] : names[0];
  for (int fault = 0; fault < 7; ++fault) {
    if (std::strcmp(names[fault], wanted) != 0) continue;
    for (const unsigned result : run_group(blocks, static_cast<Fault>(fault)))
      if (result != expected(blocks)) return std::puts("wrong result"), 1;
    return std::puts("right"), 0;
  }
  return std::puts("unknown fault"), 2;
}
