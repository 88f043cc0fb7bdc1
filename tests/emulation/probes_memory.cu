// Blocks that exchange values through global memory while they run, and asynchronous copies.
#include "emulation/probes.h"

namespace fusedlstm::cuda::probes {
namespace {

constexpr unsigned kBlocks = 4, kThreads = 64, kRounds = 6;

// What thread `thread` of block `block` publishes in a round.
__host__ __device__ inline uint32_t message(unsigned round, unsigned block, unsigned thread) {
  return (round + 1) * 1000003u + block * 1009u + thread;
}

// The sum of the messages to the threads of the same index.
std::vector<uint32_t> sums(unsigned blocks) {
  std::vector<uint32_t> expected(blocks * kThreads);
  for (unsigned i = 0; i < expected.size(); ++i)
    for (unsigned round = 0; round < kRounds; ++round)
      for (unsigned block = 0; block < blocks; ++block) expected[i] += message(round, block, i % kThreads);
  return expected;
}

namespace flags {

enum Fault {
  kNone,
  kNoRelease,
  kNoBarrierBeforeRelease,
  kNoBarrierAfterPoll,
  kOverwritten,
  kNotResident,
  kGridTooLarge,
};

// Every block tells every other block its round by a flag of its own; messages of odd and even rounds have a
// place each, for a block may be one round ahead.
__global__ void kernel(uint32_t* messages, uint32_t* flags, uint32_t* out, int fault) {
  const unsigned t = thread_index(), block = block_index(), blocks = grid_size();
  uint32_t sum = 0;
  for (unsigned round = 0; round < kRounds; ++round) {
    uint32_t* place = messages + (fault == kOverwritten ? 0 : round % 2) * blocks * kThreads;
    store_relaxed(place + block * kThreads + t, message(round, block, t));
    if (fault != kNoBarrierBeforeRelease) block_barrier();
    if (t == 0) {
      if (fault == kNoRelease)
        store_relaxed(flags + block, round + 1);
      else
        store_release(flags + block, round + 1);
    }
    if (t < blocks) {
      while (load_relaxed(flags + t) <= round) {
      }
      fence();
    }
    if (fault != kNoBarrierAfterPoll) block_barrier();
    for (unsigned from = 0; from < blocks; ++from) sum += load_relaxed(place + from * kThreads + t);
  }
  out[block * kThreads + t] = sum;
}

void run(int fault, unsigned) {
  const unsigned blocks = kBlocks + (fault == kNotResident || fault == kGridTooLarge ? 1 : 0);
  const std::vector<uint32_t> nothing(2 * blocks * kThreads, 0xffffffffu);
  DeviceArray<uint32_t> messages(nothing), flags(std::vector<uint32_t>(blocks, 0)), out(sums(blocks));
  Launch settings{blocks, kThreads, nullptr};
  settings.cooperative = fault != kNotResident;
  launch("flags", kernel, settings, messages.data(), flags.data(), out.data(), fault);
  expect_equal(out.values(), sums(blocks));
}

}  // namespace flags

namespace warp_flags {

enum Fault { kNone, kNoBarrierBeforeRelease, kNoBarrierAfterPoll, kNoRelease };

// As above with a flag for each warp, which is read by the warp of the same index in the next block.
__global__ void kernel(uint32_t* messages, uint32_t* flags, uint32_t* out, int fault) {
  const unsigned t = thread_index(), warp = t / 32, block = block_index(), from = (block + 1) % grid_size();
  constexpr unsigned kWarps = kThreads / 32;
  uint32_t sum = 0;
  for (unsigned round = 0; round < kRounds; ++round) {
    uint32_t* place = messages + round * grid_size() * kThreads;
    store_relaxed(place + block * kThreads + t, message(round, block, t));
    if (fault != kNoBarrierBeforeRelease) warp_barrier();
    if (t % 32 == 0) {
      if (fault == kNoRelease)
        store_relaxed(flags + block * kWarps + warp, round + 1);
      else
        store_release(flags + block * kWarps + warp, round + 1);
      while (load_acquire(flags + from * kWarps + warp) <= round) {
      }
    }
    if (fault != kNoBarrierAfterPoll) warp_barrier();
    sum += load_relaxed(place + from * kThreads + t);
  }
  out[block * kThreads + t] = sum;
}

void run(int fault, unsigned) {
  std::vector<uint32_t> expected(kBlocks * kThreads);
  for (unsigned i = 0; i < expected.size(); ++i)
    for (unsigned round = 0; round < kRounds; ++round)
      expected[i] += message(round, (i / kThreads + 1) % kBlocks, i % kThreads);
  DeviceArray<uint32_t> messages(std::vector<uint32_t>(kRounds * kBlocks * kThreads, 0xffffffffu));
  DeviceArray<uint32_t> flags(std::vector<uint32_t>(kBlocks * kThreads / 32, 0)), out(expected);
  launch("warp_flags", kernel, {kBlocks, kThreads, nullptr, 0, true}, messages.data(), flags.data(),
         out.data(), fault);
  expect_equal(out.values(), expected);
}

}  // namespace warp_flags

namespace sentinel {

enum Fault { kNone, kOneWord, kNotCleared, kMisaligned };

constexpr uint32_t kEmpty = 0xffffffffu;

// The message is its own flag: every word of it is there once it is no longer kEmpty.
__global__ void kernel(uint4* messages, uint32_t* out, int fault) {
  const unsigned t = thread_index(), block = block_index(), from = (block + 1) % grid_size();
  if (fault == kMisaligned) messages = reinterpret_cast<uint4*>(reinterpret_cast<uint32_t*>(messages) + 1);
  uint32_t sum = 0;
  for (unsigned round = 0; round < kRounds; ++round) {
    uint4* place = messages + (fault == kNotCleared ? 0 : round) * grid_size() * kThreads;
    uint4 value{message(round, block, t), sum, round, t};
    store_relaxed(place + block * kThreads + t, value);
    do value = load_relaxed(place + from * kThreads + t);
    while (value.x == kEmpty ||
           (fault != kOneWord && (value.y == kEmpty || value.z == kEmpty || value.w == kEmpty)));
    sum = (sum + value.x + value.y + value.z + value.w) % 1000000007u;
  }
  out[block * kThreads + t] = sum;
}

void run(int fault, unsigned) {
  std::vector<uint32_t> sums(kBlocks * kThreads);
  for (unsigned round = 0; round < kRounds; ++round) {
    const auto before = sums;
    for (unsigned i = 0; i < sums.size(); ++i) {
      const unsigned t = i % kThreads, from = (i / kThreads + 1) % kBlocks;
      sums[i] = (before[i] + message(round, from, t) + before[from * kThreads + t] + round + t) % 1000000007u;
    }
  }
  DeviceArray<uint4> messages(
      std::vector<uint4>(kRounds * kBlocks * kThreads, {kEmpty, kEmpty, kEmpty, kEmpty}));
  DeviceArray<uint32_t> out(sums);
  launch("sentinel", kernel, {kBlocks, kThreads, nullptr, 0, true}, messages.data(), out.data(), fault);
  expect_equal(out.values(), sums);
}

}  // namespace sentinel

namespace counters {

enum Fault { kNone, kNoBarrier };

// Two threads of block 0 take turns in counting up one word, and nobody may see it go down.
__global__ void kernel(uint32_t* counters, uint32_t* out, int fault) {
  const unsigned t = thread_index();
  uint32_t* counter = counters + t / 2;
  if (block_index() == 0) {
    for (unsigned round = 1; round <= kRounds; ++round) {
      if (t % 2 == round % 2) store_relaxed(counter, round);
      if (fault != kNoBarrier) block_barrier();
    }
  } else {
    uint32_t last = 0, falls = 0;
    for (int i = 0; i < 200; ++i) {
      const uint32_t value = load_relaxed(counter);
      if (value < last) ++falls;
      last = value;
    }
    out[(block_index() - 1) * kThreads + t] = falls;
  }
}

void run(int fault, unsigned) {
  DeviceArray<uint32_t> counters(std::vector<uint32_t>(kThreads / 2, 0));
  DeviceArray<uint32_t> out(std::vector<uint32_t>((kBlocks - 1) * kThreads, 1));
  launch("counters", kernel, {kBlocks, kThreads, nullptr, 0, true}, counters.data(), out.data(), fault);
  expect_equal(out.values(), std::vector<uint32_t>((kBlocks - 1) * kThreads, 0));
  expect_equal(counters.values(), std::vector<uint32_t>(kThreads / 2, kRounds));
}

}  // namespace counters

namespace copies {

enum Fault {
  kNone,
  kNoWait,
  kWaitForTooFew,
  kNoCommit,
  kNoBarrierAfterWait,
  kNoBarrierBeforeRefill,
  kMisaligned,
  kOutsideShared,
};

struct Shared {
  uint32_t tiles[2][kThreads][4];
};

// While a tile is summed the next one arrives in the other half of shared memory.
__global__ void kernel(const uint32_t* in, uint32_t* out, int fault) {
  auto& shared = shared_memory<Shared>();
  const unsigned t = thread_index();
  const auto fetch = [&](unsigned tile) {
    uint32_t* to = shared.tiles[tile % 2][t];
    if (fault == kMisaligned) to += 1;
    if (fault == kOutsideShared) to += 4 * kThreads;
    if (tile < kRounds) copy_async(to, in + (tile * kThreads + t) * 4);
    if (fault != kNoCommit) copy_async_commit();
  };
  fetch(0);
  uint32_t sum = 0;
  for (unsigned tile = 0; tile < kRounds; ++tile) {
    fetch(tile + 1);
    if (fault == kWaitForTooFew)
      copy_async_wait<2>();
    else if (fault != kNoWait)
      copy_async_wait<1>();
    if (fault != kNoBarrierAfterWait) block_barrier();
    for (unsigned i = 0; i < 4; ++i) sum += (tile + 1) * shared.tiles[tile % 2][(t + 1) % kThreads][i];
    if (fault != kNoBarrierBeforeRefill) block_barrier();
  }
  out[block_index() * kThreads + t] = sum;
}

void run(int fault, unsigned seed) {
  const auto in = random_words(kRounds * kThreads * 4, seed);
  std::vector<uint32_t> expected(2 * kThreads);
  for (unsigned i = 0; i < expected.size(); ++i)
    for (unsigned tile = 0; tile < kRounds; ++tile)
      for (unsigned word = 0; word < 4; ++word)
        expected[i] += (tile + 1) * in[(tile * kThreads + (i + 1) % kThreads) * 4 + word];
  DeviceArray<uint32_t> device_in(in), out(std::vector<uint32_t>(expected.size()));
  launch("copies", kernel, {2, kThreads, nullptr, sizeof(Shared)}, device_in.data(), out.data(), fault);
  expect_equal(out.values(), expected);
}

}  // namespace copies

}  // namespace

std::vector<Probe> memory_probes() {
  return {
      {"flags",
       {"no_release", "no_barrier_before_release", "no_barrier_after_poll", "overwritten", "not_resident",
        "grid_too_large"},
       flags::run},
      {"warp_flags", {"no_barrier_before_release", "no_barrier_after_poll", "no_release"}, warp_flags::run},
      {"sentinel", {"one_word", "not_cleared", "misaligned"}, sentinel::run},
      {"counters", {"no_barrier"}, counters::run},
      {"copies",
       {"no_wait", "wait_for_too_few", "no_commit", "no_barrier_after_wait", "no_barrier_before_refill",
        "misaligned", "outside_shared"},
       copies::run},
  };
}

}  // namespace fusedlstm::cuda::probes
