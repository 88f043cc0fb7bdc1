// Threads of a block: barriers, shared memory, shuffles. And what a thread computes on its own:
// approximations.
#include <cmath>
#include <limits>

#include "emulation/probes.h"

namespace fusedlstm::cuda::probes {
namespace {

namespace reverse {

constexpr unsigned kBlocks = 6, kThreads = 96, kRounds = 3;

enum Fault {
  kNone,
  kNoBarrierBeforeRead,
  kNoBarrierBeforeWrite,
  kBarrierSkipped,
  kSharedPastTheEnd,
  kGlobalPastTheEnd,
  kTooLittleShared,
  kUnwritten,
};

struct Shared {
  uint32_t values[kThreads];
};

// Reverses the values of a block and adds 1, several times.
__global__ void kernel(const uint32_t* in, uint32_t* out, int fault) {
  auto& shared = shared_memory<Shared>();
  const unsigned t = thread_index(), i = block_index() * kThreads + t;
  uint32_t value = in[fault == kGlobalPastTheEnd ? i + 1 : i];
  for (unsigned round = 0; round < kRounds; ++round) {
    if (fault != kUnwritten) shared.values[t] = value;
    const bool skips = fault == kBarrierSkipped && t == 5 && round == 1;
    if (fault != kNoBarrierBeforeRead && !skips) block_barrier();
    value = shared.values[kThreads - (fault == kSharedPastTheEnd ? 0 : 1) - t] + 1;
    if (fault != kNoBarrierBeforeWrite) block_barrier();
  }
  out[i] = value;
}

void run(int fault, unsigned seed) {
  const auto in = random_words(kBlocks * kThreads, seed);
  DeviceArray<uint32_t> device_in(in), device_out(std::vector<uint32_t>(in.size()));
  const std::size_t bytes = sizeof(Shared) - (fault == kTooLittleShared ? 4 : 0);
  launch("reverse", kernel, {kBlocks, kThreads, nullptr, bytes}, device_in.data(), device_out.data(), fault);
  auto expected = in;
  for (unsigned i = 0; i < expected.size(); ++i)
    expected[i] = in[i / kThreads * kThreads + kThreads - 1 - i % kThreads] + kRounds;
  expect_equal(device_out.values(), expected);
}

}  // namespace reverse

namespace warp_sum {

constexpr unsigned kBlocks = 6, kThreads = 96;

enum Fault { kNone, kWrongMask, kWrongLane, kPartialWarp, kLaneLeaves, kOtherCollective, kOtherBarrier };

// The sum over a warp plus the next lane's value.
__global__ void kernel(const uint32_t* in, uint32_t* out, int fault) {
  const unsigned i = block_index() * kThreads + thread_index();
  const int lane = static_cast<int>(thread_index() % 32);
  if (fault == kLaneLeaves && lane == 7) return;
  const uint32_t value = in[i];
  uint32_t sum = value;
  for (int mask = 16; mask > 0; mask /= 2)
    sum += shuffle_xor(sum, fault == kWrongMask && mask == 2 ? 4 : mask);
  if (fault == kOtherCollective && lane == 3) warp_barrier();
  if (fault == kOtherBarrier && lane == 3) block_barrier();
  out[i] = sum + shuffle(value, (lane + (fault == kWrongLane ? 2 : 1)) % 32);
}

void run(int fault, unsigned seed) {
  const auto in = random_words(kBlocks * kThreads, seed);
  DeviceArray<uint32_t> device_in(in), device_out(std::vector<uint32_t>(in.size()));
  const unsigned threads = kThreads - (fault == kPartialWarp ? 16 : 0);
  launch("warp_sum", kernel, {kBlocks, threads, nullptr}, device_in.data(), device_out.data(), fault);
  std::vector<uint32_t> expected(in.size());
  for (unsigned i = 0; i < in.size(); ++i) {
    const unsigned first = i / 32 * 32;
    for (unsigned lane = 0; lane < 32; ++lane) expected[i] += in[first + lane];
    expected[i] += in[first + (i + 1) % 32];
  }
  expect_equal(device_out.values(), expected);
}

}  // namespace warp_sum

namespace launches {

enum Fault {
  kNone,
  kNoBlocks,
  kNoThreads,
  kTooManyThreads,
  kTooMuchShared,
  kCooperativeTooLarge,
  kThrows,
  kOutsideAKernel,
};

__global__ void kernel(uint32_t* out, int fault) {
#ifndef __CUDACC__
  if (fault == kThrows && thread_index() == 500) throw std::invalid_argument("thrown by the kernel");
#endif
  out[block_index() * block_size() + thread_index()] = grid_size();
}

void run(int fault, unsigned) {
  DeviceArray<uint32_t> out(std::vector<uint32_t>(8 * 1024));
  Launch settings{8, 1024, nullptr, 227 * 1024};
  if (fault == kNoBlocks) settings.blocks = 0;
  if (fault == kNoThreads) settings.threads = 0;
  if (fault == kTooManyThreads) settings.threads = 1025;
  if (fault == kTooMuchShared) settings.shared_memory += 1;
  if (fault == kCooperativeTooLarge) settings.cooperative = true;
#ifndef __CUDACC__
  if (fault == kOutsideAKernel) kernel(out.data(), kNone);
#endif
  launch("launches", kernel, settings, out.data(), fault);
  expect_equal(out.values(), std::vector<uint32_t>(8 * 1024, 8));
}

}  // namespace launches

namespace approximations {

enum Fault { kNone, kSubnormalKept };

struct Example {
  float x, result;
};

__global__ void kernel(const float* x, float* out, bool reciprocal, int fault) {
  const unsigned i = thread_index();
  out[i] = !reciprocal ? exp2_fast(x[i]) : fault == kSubnormalKept ? 1 / x[i] : reciprocal_fast(x[i]);
}

// Zeros differ by their sign, all NaN are alike.
uint32_t bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x == x ? bits : 0x7fffffff;
}

void expect_results(const std::vector<Example>& examples, bool reciprocal, int fault) {
  std::vector<float> x;
  std::vector<uint32_t> got, expected;
  for (const Example& example : examples) x.push_back(example.x), expected.push_back(bits(example.result));
  DeviceArray<float> device_x(x), out(x);
  launch("approximations", kernel, {1, static_cast<unsigned>(x.size()), nullptr}, device_x.data(), out.data(),
         reciprocal, fault);
  for (const float value : out.values()) got.push_back(bits(value));
  expect_equal(got, expected);
}

// Where gates saturate both must be exact.
void run(int fault, unsigned) {
  constexpr float kInf = std::numeric_limits<float>::infinity(),
                  kNan = std::numeric_limits<float>::quiet_NaN();
  expect_results({{kInf, kInf},
                  {1e38f, kInf},
                  {128, kInf},
                  {0, 1},
                  {-0.0f, 1},
                  {-1e-40f, 1},
                  {-127, 0},
                  {-1e38f, 0},
                  {-kInf, 0},
                  {kNan, kNan}},
                 false, fault);
  expect_results({{kInf, 0},
                  {3e38f, 0},
                  {0x1p127f, 0},
                  {1, 1},
                  {1e-40f, kInf},
                  {0, kInf},
                  {-0.0f, -kInf},
                  {-0x1p127f, -0.0f},
                  {-kInf, -0.0f},
                  {kNan, kNan}},
                 true, fault);
}

}  // namespace approximations

}  // namespace

std::vector<Probe> thread_probes() {
  return {
      {"reverse",
       {"no_barrier_before_read", "no_barrier_before_write", "barrier_skipped", "shared_past_the_end",
        "global_past_the_end", "too_little_shared", "unwritten"},
       reverse::run},
      {"warp_sum",
       {"wrong_mask", "wrong_lane", "partial_warp", "lane_leaves", "other_collective", "other_barrier"},
       warp_sum::run},
      {"launches",
       {"no_blocks", "no_threads", "too_many_threads", "too_much_shared", "cooperative_too_large", "throws",
        "outside_a_kernel"},
       launches::run},
      {"approximations", {"subnormal_kept"}, approximations::run},
  };
}

}  // namespace fusedlstm::cuda::probes
