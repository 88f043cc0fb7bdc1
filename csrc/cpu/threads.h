// The team of threads that runs a pass, its barrier, and how the work is divided among the threads.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "args.h"

namespace fusedlstm::cpu {

// A forked child has none of its parent's OpenMP threads, and a parallel region in it would hang.
inline std::atomic<bool> in_forked_child{false};
inline const int fork_is_noticed = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

// Calls function(index, size) on up to `threads` threads. The team has one thread inside another parallel
// region, in a forked process and without OpenMP.
template <class Function>
void run_team(int64_t threads, const Function& function) {
#ifdef _OPENMP
  if (threads > 1 && !in_forked_child) {
#pragma omp parallel num_threads(static_cast<int>(threads))
    function(int64_t(omp_get_thread_num()), int64_t(omp_get_num_threads()));
    return;
  }
#endif
  function(int64_t(0), int64_t(1));
}

// Spins for a quarter of a millisecond, then sleeps. Threads with equal work arrive within the spin. If
// another process has taken a core, a spinning thread would keep the core that its partner needs. Yielding
// instead of sleeping is worse: the scheduler returns to a yielding thread one time slice later, in every
// step. Beside two busy processes a pass takes 3 times as long with sleep, 25 to 50 times with yield.
class Barrier {
 public:
  // `count` is the same for every thread and every use.
  void wait(int64_t count) {
    if (count == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    for (int spin = 0; spin < kSpins; ++spin) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      pause();
    }
    phase_.wait(phase, std::memory_order_acquire);
  }

 private:
  static constexpr int kSpins = 20000;  // of about 40 cycles: a quarter of a millisecond

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

inline int64_t round_up(int64_t n, int64_t multiple) {
  return ceil_div(n, multiple) * multiple;
}

// The index-th of `count` equal parts of n items.
inline Range even_part(int64_t n, int64_t index, int64_t count) {
  return {n * index / count, n * (index + 1) / count};
}

// The plan for the threads that started. If they are fewer than planned, they all share the units.
inline ThreadPlan plan_for_team(ThreadPlan plan, int64_t threads) {
  if (threads == plan.threads()) return plan;
  plan.groups = plan.row_threads = 1;
  plan.unit_threads = threads;
  return plan;
}

// One thread of the team: its group, and its coordinates in the grid of the group.
struct TeamThread {
  ThreadPlan plan;
  int64_t group, row_thread, unit_thread;

  TeamThread(const ThreadPlan& plan, int64_t index)
      : plan(plan),
        group(index / (plan.unit_threads * plan.row_threads)),
        row_thread(index / plan.unit_threads % plan.row_threads),
        unit_thread(index % plan.unit_threads) {}

  int64_t group_size() const { return plan.row_threads * plan.unit_threads; }
  int64_t index_in_group() const { return row_thread * plan.unit_threads + unit_thread; }
  // This thread's part of n items that are divided among the whole group.
  Range part_of_group(int64_t n) const { return even_part(n, index_in_group(), group_size()); }

  // This thread's part of n units (or output columns), in unit blocks of `width`, for its rows of the batch.
  //
  // Unit blocks are divided evenly among the unit threads: thread (row, unit) computes its own for every
  // row_threads-th row. Those that the division leaves over are computed by all threads, each for every
  // group_size-th row. With a batch of under 4 rows for each thread, all are divided, even if unevenly.
  //
  // With more than kMC rows for a thread, a share has at most `nc_blocks` unit blocks, whose panels stay in
  // the core's own cache until all rows have used them (BLIS: NC).
  template <class T>
  std::vector<Share<T>> shares(int64_t n, int64_t width, int64_t nc_blocks, int64_t batch,
                               T* workspace) const {
    constexpr int64_t kRowsToDivide = 4;
    const int64_t threads = plan.unit_threads, blocks = ceil_div(n, width);
    const int64_t whole = batch < kRowsToDivide * group_size() ? blocks : n / width / threads * threads;
    if (batch <= kMC * plan.row_threads) nc_blocks = blocks;
    std::vector<Share<T>> shares;
    const auto add = [&](int64_t begin, int64_t end, int64_t row_first, int64_t row_stride) {
      for (; begin < end; begin += nc_blocks)
        shares.push_back({{begin, std::min(begin + nc_blocks, end)}, row_first, row_stride, workspace});
    };
    const Range own = even_part(whole, unit_thread, threads);
    add(own.begin, own.end, row_thread, plan.row_threads);
    add(whole, blocks, row_thread + unit_thread * plan.row_threads, group_size());
    return shares;
  }
};

// Barriers of the team: one for each group, and one for each row thread's unit threads.
class Barriers {
 public:
  explicit Barriers(const ThreadPlan& plan) : barriers_(2 * plan.threads()) {}

  void wait_for_group(const TeamThread& thread) { barriers_[thread.group].wait(thread.group_size()); }
  void wait_for_unit_threads(const TeamThread& thread) {
    const ThreadPlan& plan = thread.plan;
    barriers_[plan.threads() + thread.group * plan.row_threads + thread.row_thread].wait(plan.unit_threads);
  }

 private:
  std::vector<Barrier> barriers_;
};

}  // namespace fusedlstm::cpu
