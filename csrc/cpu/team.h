// A team of threads that goes through a whole sequence together, and where its members wait for each other.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fusedlstm::cpu {

// OpenMP's threads do not come along into a forked process, where a call would wait for them for ever.
inline std::atomic<bool> in_forked_child{false};
inline const int fork_is_noticed = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

// Calls function(member, size) on up to `threads` threads; the team may be smaller, and is of one thread
// inside another parallel region, in a forked process and without OpenMP.
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

// Waits by spinning, which is what an even step needs, but not for long: once another process has taken a
// core, a thread that went on spinning would hold the one its partner waits for. Then it sleeps, and does not
// yield: the system takes a yielding thread for one in no hurry and returns to it a time slice later, at each
// of the steps (25 to 50 times slower beside two busy processes, against 3 times with sleep).
class Barrier {
 public:
  // `count` is the same for every member and every use.
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
  static constexpr int kSpins = 20000;  // of 40 cycles or so: a quarter of a millisecond

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

}  // namespace fusedlstm::cpu
