// A team of threads that goes through a whole sequence together, and where its members wait for each other.
#pragma once

#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fusedlstm::cpu {

// Calls function(member, size) on up to `threads` threads; the team may be smaller, and is of one thread
// inside another parallel region or without OpenMP.
template <class Function>
void run_team(int64_t threads, const Function& function) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(static_cast<int>(threads))
    function(int64_t(omp_get_thread_num()), int64_t(omp_get_num_threads()));
    return;
  }
#endif
  function(int64_t(0), int64_t(1));
}

// Waits in three stages: some microseconds of spinning, which is what an even step needs; then a futex. A
// thread that went on spinning would hold the very core that the late one is waiting for, once another
// process has taken one of them.
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
  static constexpr int kSpins = 2000;  // 40 cycles each on the processors of today: some 25 us

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
