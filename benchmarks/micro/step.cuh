// A step of an exchange: each block publishes its part of a state, and reads the parts of all blocks.
#pragma once

#include "cuda/persistent.h"
#include "timing.cuh"

namespace fusedlstm::micro {

struct Exchange {
  uint32_t* slots;  // [kSlots][blocks][bytes / 4]
  uint32_t* flags;  // [blocks][kFlagWords]
  Report* report;
  int bytes;  // of a block's part
  int steps;
  bool fences;  // with published data: every kStepsPerFence steps, as in the product's kernels
};

constexpr int kSlots = slot_count(Signal::data);

// What shows that a part is published: the data itself, a flag of the block after a barrier, or one of each
// warp.
enum class Shown { data, block_flag, warp_flags };

__device__ __forceinline__ bool has_empty(const uint4& words) {
  return words.x == kEmpty || words.y == kEmpty || words.z == kEmpty || words.w == kEmpty;
}

// A warp reads the parts of an eighth of the blocks, as a warp that multiplies an eighth of K does, with
// kInFlight loads of 16 bytes in each lane at a time.
template <Shown kShown, int kInFlight>
__global__ void __launch_bounds__(kThreads, 1) exchange_kernel(Exchange x) {
  constexpr int kFlags = kShown == Shown::warp_flags ? kWarps : 1;
  const int thread = static_cast<int>(thread_index()), lane = lane_index(), warp = warp_index();
  const int block = static_cast<int>(block_index()), blocks = static_cast<int>(grid_size());
  const int words = x.bytes / 4, own = block * words + thread;
  const int producers = blocks / kWarps, first = warp * producers;
  const bool publishes = thread < words;
  const auto slot = [&](int state) { return x.slots + (state & (kSlots - 1)) * blocks * words; };

  const auto publish = [&](int state) {
    if (publishes) store_relaxed(slot(state) + own, word_of(state, own));
    if constexpr (kShown == Shown::block_flag) {
      block_barrier();
      if (thread == 0) store_release(x.flags + block * kFlagWords, static_cast<uint32_t>(state + 1));
    } else if constexpr (kShown == Shown::warp_flags) {
      warp_barrier();
      if (lane == 0) store_release(x.flags + block * kFlagWords + warp, static_cast<uint32_t>(state + 1));
    }
  };
  const auto wait = [&](int state) {
    if constexpr (kShown != Shown::data) {
      for (int i = lane; i < producers * kFlags; i += 32) {
        const uint32_t* const flag = x.flags + (first + i / kFlags) * kFlagWords + i % kFlags;
        wait_while([&] { return load_relaxed(flag) < static_cast<uint32_t>(state + 1); });
        load_acquire(flag);
      }
      warp_barrier();
    }
  };
  // A wrong word shows in the sum of the words that this lane reads. To compare each word would take five
  // times the instructions, which a step would pay for. All but the state is known before the first step.
  const int first_vector = first * (words / 4) + lane, end = (first + producers) * (words / 4);
  uint32_t count = 0, places = 0;
  for (int v = first_vector; v < end; v += 32) {
    count += 4;
    places += 4 * word_of(0, 4 * v) + (1 + 2 + 3);
  }
  const auto expected = [&](int state) { return count * word_of(state, 0) + places; };
  const auto read = [&](int state) {
    const auto* const vectors = reinterpret_cast<const uint4*>(slot(state));
    uint32_t sum = 0;
    for (int v = first_vector; v < end; v += 32 * kInFlight) {
      uint4 data[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) data[i] = load_relaxed(vectors + v + 32 * i);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if constexpr (kShown == Shown::data)
          wait_while(
              [&] { return has_empty(data[i]) && has_empty(data[i] = load_relaxed(vectors + v + 32 * i)); });
        sum += data[i].x + data[i].y + data[i].z + data[i].w;
      }
    }
    return sum;
  };

  const long long begin = clock64();
  bool wrong = false;
  publish(0);
  for (int s = 0; s < x.steps; ++s) {
    wait(s);
    wrong |= read(s) != expected(s);
    block_barrier();  // in place of the one at which the warps' sums are added
    publish(s + 1);
    if constexpr (kShown == Shown::data) {
      // Every block has published state s, and so has read state s - 1.
      if (s > 0 && publishes) store_relaxed(slot(s - 1) + own, kEmpty);
      if (x.fences && s % kStepsPerFence == kStepsPerFence - 1) fence();
    }
  }
  finish(x.report, begin, wrong);
}

template <Shown kShown>
void (*exchange_with(int loads_in_flight))(Exchange) {
  switch (loads_in_flight) {
    case 1:
      return exchange_kernel<kShown, 1>;
    case 4:
      return exchange_kernel<kShown, 4>;
    default:
      return exchange_kernel<kShown, 16>;
  }
}

template <Shown kShown>
void measure_exchange(Bench& bench, const char* what, int blocks, int bytes, bool fences) {
  constexpr int kSteps = 2000;
  const int of_a_lane = blocks * bytes / 16 / kThreads;
  const int in_flight = of_a_lane >= 16 ? 16 : of_a_lane >= 4 ? 4 : 1;
  const size_t slot_bytes = size_t{kSlots} * blocks * bytes;
  const size_t flag_bytes = size_t(blocks) * kFlagWords * sizeof(uint32_t);
  const Exchange x{device_array<uint32_t>(slot_bytes / 4),
                   device_array<uint32_t>(flag_bytes / 4),
                   bench.report,
                   bytes,
                   kSteps,
                   fences};
  const Times times = bench.measure(
      blocks, kSteps,
      [&] {
        check(cudaMemsetAsync(x.slots, 0xff, slot_bytes, bench.stream), "a fill");
        check(cudaMemsetAsync(x.flags, 0, flag_bytes, bench.stream), "a fill");
      },
      [&] {
        launch("an exchange", exchange_with<kShown>(in_flight),
               {static_cast<unsigned>(blocks), kThreads, bench.stream, kOneBlockEach, true}, x);
      });
  Point()
      .set("what", what)
      .set("blocks", blocks)
      .set("bytes", bytes)
      .set("loads_in_flight", in_flight)
      .set(times)
      .print(times.ok);
  check(cudaFree(x.slots), "memory");
  check(cudaFree(x.flags), "memory");
}

}  // namespace fusedlstm::micro
