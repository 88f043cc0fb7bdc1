// What all sections share: waits with a limit, the check of what a launch did, its timing, and main().
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/launch.h"
#include "point.h"

namespace fusedlstm::micro {

using namespace fusedlstm::cuda;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMinRepeats = 5, kMaxRepeats = 100;
constexpr int kOneBlockEach = 120 * 1024;  // bytes of shared memory that leave no room for a second block
constexpr long long kLimitClocks = 2'000'000'000;  // about 1 s; a launch takes less than 0.1 s
constexpr long long kWarmUpClocks = 400'000'000;   // about 0.2 s, in which the clocks rise

__device__ __forceinline__ int lane_index() {
  return static_cast<int>(thread_index()) % 32;
}
__device__ __forceinline__ int warp_index() {
  return static_cast<int>(thread_index()) / 32;
}

// The block's dynamic shared memory, aligned as a swizzled operand of wgmma must be.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char micro_shared_memory[];
  return micro_shared_memory;
}

// Waits while `condition` holds. A longer wait than the limit means that a signal was lost: it ends the
// launch, and the host reports that the section hung. The clock is read seldom, so a short wait does not pay
// for it.
template <class Condition>
__device__ __forceinline__ void wait_while(const Condition& condition, unsigned polls_per_look = 1024) {
  long long begin = 0;
  for (unsigned polls = 1; condition(); ++polls) {
    if (polls % polls_per_look) continue;
    const long long now = clock64();
    if (begin == 0) begin = now;
    if (now - begin > kLimitClocks)
      __assert_fail("a wait took more than 2e9 cycles", __FILE__, __LINE__, __func__);
  }
}

// A word that says which state it belongs to and where it stands: never kPoison below state 65535.
constexpr uint32_t kPoison = 0xffffffffu;
__device__ __forceinline__ uint32_t word_of(int state, int index) {
  return (static_cast<uint32_t>(state) << 16) + static_cast<uint32_t>(index);
}
__device__ __forceinline__ uint4 vector_of(int state, int index) {
  const uint32_t first = word_of(state, index);
  return make_uint4(first, first + 1, first + 2, first + 3);
}
__device__ __forceinline__ bool differs(uint4 a, uint4 b) {
  return a.x != b.x || a.y != b.y || a.z != b.z || a.w != b.w;
}

struct Report {
  unsigned finished;  // blocks that came to their end
  unsigned wrong;     // threads that saw a wrong value
  long long clocks;   // of block 0
};

// By every thread at the end of a kernel that began at `begin`.
__device__ __forceinline__ void finish(Report* report, long long begin, bool wrong) {
  if (wrong) atomicAdd(&report->wrong, 1u);
  if (thread_index() != 0) return;
  atomicAdd(&report->finished, 1u);
  if (block_index() == 0) report->clocks = clock64() - begin;
}

static __global__ void __launch_bounds__(kThreads) busy_kernel(Report* report, long long clocks) {
  const long long begin = clock64();
  float x = static_cast<float>(thread_index());
  while (clock64() - begin < clocks)
    for (int i = 0; i < 64; ++i) x = fmaf(x, 0.999f, 1.0f);
  finish(report, begin, x < 0);  // x is positive; the compiler cannot leave it out
}

template <class T>
T* device_array(size_t count) {
  T* memory = nullptr;
  check(cudaMalloc(&memory, count * sizeof(T)), "an allocation");
  check(cudaMemset(memory, 0xff, count * sizeof(T)), "a fill");  // poison
  // The stream of the measurements does not wait for the default one, on which the fill runs.
  check(cudaDeviceSynchronize(), "a fill");
  return memory;
}

// The GPU, and how long to measure a point on it.
struct Bench {
  double seconds;
  cudaDeviceProp properties;
  cudaStream_t stream;
  cudaEvent_t begin, end;
  Report* report;

  explicit Bench(double seconds_) : seconds(seconds_) {
    check(cudaGetDeviceProperties(&properties, 0), "a query of the device");
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    check(cudaEventCreate(&begin), "an event");
    check(cudaEventCreate(&end), "an event");
    report = device_array<Report>(1);
    const Times warm = measure(
        multiprocessors(), 1, [] {},
        [&] {
          launch("busy", busy_kernel, {unsigned(multiprocessors()), kThreads, stream}, report, kWarmUpClocks);
        },
        1);
    if (!warm.ok) throw std::runtime_error("the launch that warms up did not finish");
  }

  int multiprocessors() const { return properties.multiProcessorCount; }

  // Times launches of `blocks` blocks and `steps` steps; `prepare` sets up memory for each, untimed. The
  // first launch does not count.
  template <class Prepare, class Start>
  Times measure(int blocks, int steps, Prepare prepare, Start start, int least = kMinRepeats) {
    Times times{.ok = true};
    std::vector<double> us;
    double total = 0;
    for (int run = 0; run <= least || (total < seconds * 1e6 && run <= kMaxRepeats); ++run) {
      check(cudaMemsetAsync(report, 0, sizeof(Report), stream), "a fill");
      prepare();
      check(cudaEventRecord(begin, stream), "an event");
      start();
      check(cudaEventRecord(end, stream), "an event");
      check(cudaEventSynchronize(end), "a launch");
      Report found{};
      check(cudaMemcpy(&found, report, sizeof found, cudaMemcpyDeviceToHost), "a copy");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end), "an event");
      times.ok = times.ok && found.wrong == 0 && found.finished == static_cast<unsigned>(blocks);
      times.clocks = static_cast<double>(found.clocks) / steps;
      if (run == 0) continue;
      us.push_back(1e3 * ms / steps);
      total += 1e3 * ms;
    }
    std::sort(us.begin(), us.end());
    times.us = us[us.size() / 2];
    times.us_min = us.front();
    times.us_max = us.back();
    times.repeats = static_cast<int>(us.size());
    return times;
  }
};

// The main() of a section. The command line has the seconds to measure each point.
inline int run(int argc, char** argv, void (*section)(Bench&)) {
  const double seconds = argc == 2 ? std::atof(argv[1]) : 0;
  if (seconds <= 0) {
    std::fprintf(stderr, "usage: %s SECONDS, above 0, for each point\n", argv[0]);
    return 2;
  }
  try {
    Bench bench(seconds);
    section(bench);
    check(cudaDeviceSynchronize(), "a wait");
    return 0;
  } catch (const std::exception& error) {
    // After a failed assertion every call says so; check() has taken the error that the runtime keeps.
    const bool hung = cudaDeviceSynchronize() == cudaErrorAssert;
    Point().set("error", ((hung ? "hung: " : "") + std::string(error.what())).c_str()).print(false);
    return 1;
  }
}

}  // namespace fusedlstm::micro
