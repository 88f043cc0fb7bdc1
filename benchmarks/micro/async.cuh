// Instructions of compute capability 9.0 for copies in the background and for clusters; PTX ISA has their
// rules.
#pragma once

#include "timing.cuh"

namespace fusedlstm::micro {

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// An mbarrier of one arrival a phase, which also counts the bytes that arrive.
__device__ __forceinline__ void mbarrier_init(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
// Lets the other blocks of a cluster, and copies, see what mbarrier_init() wrote.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// The arrival, with the bytes that the phase waits for.
__device__ __forceinline__ void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Waits for the end of phase 0, 1, 2, ...: its parity is what the barrier knows.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, int phase) {
  wait_while(
      [&] {
        uint32_t done;
        asm volatile(
            "{\n .reg .pred p;\n"
            " mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
            " selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(phase & 1)
            : "memory");
        return done == 0;
      },
      16);  // a try may take long by itself
}

// Orders accesses of this thread, and what it knows of others', before copies that it starts afterwards. The
// one for global memory alone comes without the MEMBAR.ALL.GPU that ptxas puts before the other.
__device__ __forceinline__ void proxy_fence() {
  asm volatile("fence.proxy.async;" ::: "memory");
}
__device__ __forceinline__ void proxy_fence_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}
// Copies bytes, a multiple of 16, to shared memory; they are counted at the barrier.
__device__ __forceinline__ void bulk_copy(uint32_t shared, const void* global, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}
// The same to the blocks of the cluster whose bits are set, in each at the same place and barrier.
__device__ __forceinline__ void bulk_copy_multicast(uint32_t shared, const void* global, uint32_t bytes,
                                                    uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
      "[%3], %4;" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "h"(blocks)
      : "memory");
}

__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Orders the accesses of a block before it ahead of those of every block after it.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// An address of the own shared memory, in that of block `rank` of the cluster.
__device__ __forceinline__ uint32_t address_in(uint32_t address, int rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
__device__ __forceinline__ void store_in_cluster(uint32_t address, uint4 value) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}
// The same in the background; its 16 bytes are counted at a barrier in the same block.
__device__ __forceinline__ void store_async(uint32_t address, uint4 value, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          address),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier)
      : "memory");
}

// A launch in clusters. Blocks that wait for other clusters need as many as clusters_at_once() allows, no
// more.
struct ClusterLaunch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  ClusterLaunch(const Bench& bench, const void* kernel, int clusters, int size, int shared_bytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "shared memory of a cluster");
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
    config.gridDim = static_cast<unsigned>(clusters * size);
    config.blockDim = kThreads;
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = bench.stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;  // config points into it
};

template <class... Parameters>
int clusters_at_once(const Bench& bench, void (*kernel)(Parameters...), int size, int shared_bytes) {
  const auto* const address = reinterpret_cast<const void*>(kernel);
  const int most = bench.multiprocessors() / size;
  const ClusterLaunch launch(bench, address, most, size, shared_bytes);
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, address, &launch.config), "a query of clusters");
  return std::min(clusters, most);
}

template <class... Parameters, class... Arguments>
void launch_clusters(const Bench& bench, void (*kernel)(Parameters...), int clusters, int size,
                     int shared_bytes, Arguments... arguments) {
  const ClusterLaunch launch(bench, reinterpret_cast<const void*>(kernel), clusters, size, shared_bytes);
  check(cudaLaunchKernelEx(&launch.config, kernel, arguments...), "a launch in clusters");
}

}  // namespace fusedlstm::micro
