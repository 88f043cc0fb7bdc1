// All blocks read one state through the L2 cache by bulk copies, alone or as a step of an exchange by flags.
#pragma once

#include "async.cuh"
#include "cuda/persistent.h"

namespace fusedlstm::micro {

struct Bulk {
  uint32_t* slots;  // [kBulkSlots][bytes / 4]
  uint32_t* flags;  // [blocks][kFlagWords]
  Report* report;
  int bytes;    // of the state, a power of two
  int piece;    // bytes of a copy
  int writers;  // blocks that publish a part, a power of two
  int steps;
  bool full_fence;  // fence.proxy.async instead of fence.proxy.async.global
};

constexpr int kBulkSlots = 4;
constexpr int kBarrierBytes = 128;  // before the data in shared memory

// In a cluster each block copies its share of the pieces to all. With kExchange every step has a new state,
// of which each block publishes a part; without, the state stays, and a step is the copy alone. kCheckAll
// looks at every word of every step instead of at 16 bytes in each thread, which costs a step little.
template <int kCluster, bool kExchange, bool kCheckAll>
__global__ void __launch_bounds__(kThreads, 1) bulk_kernel(Bulk x) {
  const int thread = static_cast<int>(thread_index()), warp = warp_index(), lane = lane_index();
  const int block = static_cast<int>(block_index()), blocks = static_cast<int>(grid_size());
  const int rank = kCluster > 1 ? cluster_rank() : 0;
  const int words = x.bytes / 4, vectors = x.bytes / 16, pieces = x.bytes / x.piece;
  uint4* const data = reinterpret_cast<uint4*>(dynamic_shared() + kBarrierBytes);
  const uint32_t barrier = shared_address(dynamic_shared());
  const auto slot = [&](int state) { return x.slots + (state % kBulkSlots) * words; };

  const auto publish = [&](int state) {
    const int part = words / x.writers;
    if (block < x.writers)
      for (int i = thread; i < part; i += kThreads)
        store_relaxed(slot(state) + block * part + i, word_of(state, block * part + i));
    block_barrier();  // also: this block has read the state before
    if (thread == 0) store_release(x.flags + block * kFlagWords, static_cast<uint32_t>(state + 1));
  };
  const auto wait = [&](int state) {
    for (int i = thread; i < blocks; i += kThreads) {
      const uint32_t* const flag = x.flags + i * kFlagWords;
      wait_while([&] { return load_relaxed(flag) < static_cast<uint32_t>(state + 1); });
      load_acquire(flag);
    }
    block_barrier();
  };
  // Fills the shared memory with what no state has.
  const auto poison = [&] {
    for (int v = thread; v < vectors; v += kThreads) data[v] = make_uint4(kPoison, kPoison, kPoison, kPoison);
    proxy_fence();
  };
  // By one lane of each warp: ptxas starts the copies of a warp's lanes one after the other. Bytes may arrive
  // before the barrier is told how many to expect: its phase does not end without the arrival.
  const auto copy = [&](int state) {
    if (lane != 0) return;
    if (x.full_fence)
      proxy_fence();
    else
      proxy_fence_global();
    if (warp == 0) mbarrier_expect(barrier, static_cast<uint32_t>(x.bytes));
    for (int i = rank + kCluster * warp; i < pieces; i += kCluster * kWarps) {
      const int at = i * x.piece;
      const uint32_t to = shared_address(data) + static_cast<uint32_t>(at);
      if constexpr (kCluster > 1)
        bulk_copy_multicast(to, slot(state) + at / 4, static_cast<uint32_t>(x.piece), barrier,
                            (1 << kCluster) - 1);
      else
        bulk_copy(to, slot(state) + at / 4, static_cast<uint32_t>(x.piece), barrier);
    }
  };
  const auto is_wrong = [&](int state, int v) { return differs(data[v], vector_of(state, 4 * v)); };

  if (thread == 0) {
    mbarrier_init(barrier);
    mbarrier_init_fence();
  }
  poison();
  if constexpr (kCluster > 1)
    cluster_barrier();
  else
    block_barrier();
  const long long begin = clock64();
  bool wrong = false;
  if constexpr (kExchange) publish(0);
  for (int s = 0; s < x.steps; ++s) {
    const int state = kExchange ? s : 0;
    if constexpr (kExchange) wait(s);
    copy(state);
    mbarrier_wait(barrier, s);
    if constexpr (kCheckAll) {
      for (int v = thread; v < vectors; v += kThreads) wrong |= is_wrong(state, v);
      block_barrier();
      poison();
    } else {
      wrong |= is_wrong(state, (thread + s * 97) & (vectors - 1));
    }
    // Before the next copy every block of the cluster has read this one: with an exchange the flags say so.
    if constexpr (kExchange)
      publish(s + 1);
    else if constexpr (kCluster > 1)
      cluster_barrier();
    else
      block_barrier();
  }
  if constexpr (kCluster > 1) cluster_barrier();  // no block ends while another may write to it
  finish(x.report, begin, wrong);
}

template <int kCluster, bool kExchange>
Times time_bulk(Bench& bench, Bulk x, bool check_all) {
  const auto kernel =
      check_all ? bulk_kernel<kCluster, kExchange, true> : bulk_kernel<kCluster, kExchange, false>;
  const int shared_bytes = std::max(x.bytes + kBarrierBytes, kOneBlockEach);
  const int blocks = kCluster > 1 ? kCluster * clusters_at_once(bench, kernel, kCluster, shared_bytes)
                                  : bench.multiprocessors();
  for (x.writers = 1; 2 * x.writers <= blocks;) x.writers *= 2;
  std::vector<uint32_t> first(x.bytes / 4);
  for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<uint32_t>(i);  // word_of(0, i)
  return bench.measure(
      blocks, x.steps,
      [&] {
        check(cudaMemsetAsync(x.slots, 0xff, size_t{kBulkSlots} * x.bytes, bench.stream), "a fill");
        check(cudaMemsetAsync(x.flags, 0, size_t(blocks) * kFlagWords * 4, bench.stream), "a fill");
        if (!kExchange)
          check(cudaMemcpyAsync(x.slots, first.data(), x.bytes, cudaMemcpyHostToDevice, bench.stream),
                "a copy");
      },
      [&] {
        if constexpr (kCluster > 1)
          launch_clusters(bench, kernel, blocks / kCluster, kCluster, shared_bytes, x);
        else
          launch("bulk copies", kernel,
                 {static_cast<unsigned>(blocks), kThreads, bench.stream, size_t(shared_bytes), true}, x);
      });
}

// Two sizes of a state, and the rate at which the larger takes longer than the smaller.
template <int kCluster, bool kExchange>
void measure_bulk(Bench& bench, const char* what, int piece, bool full_fence = false) {
  double clocks_before = 0;
  for (const int bytes : {65536, 131072}) {
    constexpr int kSteps = 2000, kCheckedSteps = 64;
    Bulk x{device_array<uint32_t>(kBulkSlots * bytes / 4),
           device_array<uint32_t>(size_t(bench.multiprocessors()) * kFlagWords),
           bench.report,
           bytes,
           piece,
           0,
           kCheckedSteps,
           full_fence};
    const Times checked = time_bulk<kCluster, kExchange>(bench, x, true);
    x.steps = kSteps;
    const Times times = time_bulk<kCluster, kExchange>(bench, x, false);
    Point point;
    point.set("what", what).set("cluster", kCluster).set("bytes", bytes).set("piece", piece);
    point.set("fence", full_fence ? "fence.proxy.async" : "fence.proxy.async.global").set(times);
    point.set("bytes_a_clock", bytes / times.clocks);  // of a multiprocessor
    if (clocks_before > 0) point.set("marginal_bytes_a_clock", bytes / 2 / (times.clocks - clocks_before));
    point.print(checked.ok && times.ok);
    clocks_before = times.clocks;
    check(cudaFree(x.slots), "memory");
    check(cudaFree(x.flags), "memory");
  }
}

template <int kCluster>
void measure_bulk(Bench& bench) {
  for (const int piece : {4096, 8192}) {
    measure_bulk<kCluster, false>(bench, "copy", piece);
    measure_bulk<kCluster, true>(bench, "flags and copy", piece);
  }
  measure_bulk<kCluster, true>(bench, "flags and copy", 8192, true);
}

}  // namespace fusedlstm::micro
