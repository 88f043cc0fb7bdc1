// The threads that run a pass. A plan divides a pass among strands: the work of one thread, if all run. What
// a strand does between two barriers is a part. A thread claims the parts of its own strand, and those of
// others that nobody has claimed. So a thread that other processes keep from running holds up the pass only
// if it has begun a part. Who runs a part has no influence on its result.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "plan.h"

namespace fusedlstm::cpu {

// A barrier of the strands that share rows of the batch, or of a whole group.
enum class Barrier { rows, group };

// Which parts are open, claimed and finished. All strands of a group go through the same phases; a phase says
// what they do until the barrier `after` it.
template <class Phase>
class Parts {
 public:
  // phases[group]: in their order.
  Parts(const ThreadPlan& plan, const std::vector<Phase>* phases)
      : plan_(plan),
        phases_(phases),
        claimed_(std::make_unique<Claimed[]>(plan.threads())),
        rows_(std::make_unique<Rows[]>(plan.groups * plan.row_threads)),
        unfinished_(plan.groups * plan.row_threads) {}

  // Runs parts, first those of strand `home`, until all are finished. run(strand, phase) runs one.
  template <class Run>
  void work(int64_t home, const Run& run) {
    for (int idle = 0; unfinished_.load(std::memory_order_acquire) > 0;) {
      if (run_part(home, run) || (is_time_to_look(idle) && run_any(run))) {
        idle = 0;
      } else if (++idle < kSpins) {
        pause();
      } else {
        sleep_until_open();
        idle = kGrace;
      }
    }
  }

 private:
  struct alignas(64) Claimed {
    std::atomic<int64_t> phases{0};
  };
  // The strands of a row thread, which meet after each phase.
  struct Rows {
    alignas(64) std::atomic<int64_t> open{0};      // the phase whose parts may be claimed
    alignas(64) std::atomic<int64_t> finished{0};  // parts of all phases
  };

  // A running thread claims its next part within so many spins, a microsecond, after the barrier has opened.
  static constexpr int kGrace = 64;
  // A spin takes about 40 cycles, so many a quarter of a millisecond. Then the thread sleeps: it may hold the
  // core that a thread in the middle of a part waits for.
  static constexpr int kSpins = 20000;

  // After 64 spins, 128, 256 and so on: reading the state of another strand takes its cache line from the
  // thread that runs it.
  static bool is_time_to_look(int idle) { return idle >= kGrace && (idle & (idle - 1)) == 0; }

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  template <class Run>
  bool run_any(const Run& run) {
    for (int64_t strand = 0; strand < plan_.threads(); ++strand)
      if (run_part(strand, run)) return true;
    return false;
  }

  Rows& rows_of(int64_t strand) const { return rows_[strand / plan_.unit_threads]; }
  bool is_open(int64_t strand) const {
    return rows_of(strand).open.load(std::memory_order_relaxed) ==
           claimed_[strand].phases.load(std::memory_order_relaxed);
  }

  // The next part of a strand, unless its barrier is closed or another thread has claimed it.
  template <class Run>
  bool run_part(int64_t strand, const Run& run) {
    Rows& rows = rows_of(strand);
    int64_t phase = rows.open.load(std::memory_order_acquire);
    if (!is_open(strand) ||
        !claimed_[strand].phases.compare_exchange_strong(phase, phase + 1, std::memory_order_relaxed))
      return false;
    const int64_t group = strand / plan_.group_size();
    run(strand, phases_[group][phase]);
    if (rows.finished.fetch_add(1, std::memory_order_acq_rel) + 1 == (phase + 1) * plan_.unit_threads)
      pass_barrier(group, rows, phase);
    return true;
  }

  // After the last part of a phase of some rows.
  void pass_barrier(int64_t group, Rows& rows, int64_t phase) {
    const int64_t count = plan_.row_threads;
    if (phase + 1 == static_cast<int64_t>(phases_[group].size())) {
      unfinished_.fetch_sub(1, std::memory_order_acq_rel);
    } else if (phases_[group][phase].after == Barrier::rows) {
      rows.open.store(phase + 1, std::memory_order_release);
    } else {
      if ((arrived_[group].fetch_add(1, std::memory_order_acq_rel) + 1) % count != 0) return;
      for (int64_t i = 0; i < count; ++i)
        rows_[group * count + i].open.store(phase + 1, std::memory_order_release);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);  // the barrier is open before the look for sleepers
    if (sleepers_.load(std::memory_order_relaxed) == 0) return;
    openings_.fetch_add(1, std::memory_order_relaxed);
    openings_.notify_all();
  }

  // Sleeps unless there is a part to claim, or nothing left to do.
  void sleep_until_open() {
    const uint32_t openings = openings_.load(std::memory_order_relaxed);
    sleepers_.fetch_add(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);  // a sleeper is counted before the look for openings
    bool open = unfinished_.load(std::memory_order_relaxed) == 0;
    for (int64_t strand = 0; strand < plan_.threads(); ++strand) open |= is_open(strand);
    if (!open) openings_.wait(openings, std::memory_order_relaxed);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  const ThreadPlan& plan_;
  const std::vector<Phase>* phases_;
  std::unique_ptr<Claimed[]> claimed_;             // of each strand
  std::unique_ptr<Rows[]> rows_;                   // of each row thread of each group
  std::array<std::atomic<int64_t>, 2> arrived_{};  // row threads of each group, at barriers of the group
  alignas(64) std::atomic<int64_t> unfinished_;    // row threads
  std::atomic<uint32_t> openings_{0};              // of barriers while threads slept
  std::atomic<int> sleepers_{0};
};

using Clock = std::chrono::steady_clock;

// How many of `threads` a call of so many multiply-adds should use. OpenMP's threads meet at the end of a
// call, and where other processes hold the cores that meeting takes a time slice of the scheduler,
// milliseconds. After one that took long, a call that one thread computes sooner stays on one thread for a
// while.
int64_t team_size(int64_t threads, int64_t multiply_adds);
// Records how long the threads of a call waited for each other at its begin and end.
void note_meeting(Clock::duration wait);

// Calls run(strand, phase) for each strand and each phase of its group. The team has one thread inside
// another parallel region and without OpenMP.
template <class Phase, class Run>
void run_team(const ThreadPlan& plan, const std::vector<Phase>* phases, const Run& run) {
  if (plan.threads() == 1) {
    for (const Phase& phase : *phases) run(int64_t(0), phase);
    return;
  }
  Parts<Phase> parts(plan, phases);
#ifdef _OPENMP
  Clock::duration work{};
  const Clock::time_point start = Clock::now();
#pragma omp parallel num_threads(static_cast<int>(plan.threads()))
  {
    const int thread = omp_get_thread_num();
    const Clock::time_point begin = thread == 0 ? Clock::now() : start;
    parts.work(thread, run);
    if (thread == 0) work = Clock::now() - begin;
  }
  note_meeting(Clock::now() - start - work);
#else
  parts.work(0, run);
#endif
}

}  // namespace fusedlstm::cpu
