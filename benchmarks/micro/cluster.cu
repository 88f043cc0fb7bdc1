// The exchange of a state in a cluster: each block stores its part in the shared memory of all.
#include "async.cuh"

namespace fusedlstm::micro {
namespace {

constexpr int kMostBlocks = 8;

template <int kBytes>
struct Storage {
  alignas(16) unsigned char barriers[128];  // two mbarriers
  uint4 states[2][kMostBlocks][kBytes / 16];
};

// With kAsync the stores are counted at an mbarrier, otherwise a barrier of the cluster follows them. Two
// states take turns: a block stores state s + 2 after all parts of s + 1 have come, whose blocks had read s.
// kCheckAll looks at every word of every step instead of at 16 bytes in each thread, which costs a step
// little.
template <int kSize, int kBytes, bool kAsync, bool kCheckAll>
__global__ void __launch_bounds__(kThreads, 1) push_kernel(Report* report, int steps) {
  constexpr int kVectors = kBytes / 16, kAll = kSize * kVectors;  // all: a power of two
  constexpr int kOfThread = (kAll + kThreads - 1) / kThreads;     // known, so that addresses are made once
  auto& storage = *reinterpret_cast<Storage<kBytes>*>(dynamic_shared());
  const int thread = static_cast<int>(thread_index()), rank = cluster_rank();
  const uint32_t barriers = shared_address(storage.barriers);
  for (int i = thread; i < 2 * kAll; i += kThreads)
    storage.states[i / kAll][i % kAll / kVectors][i % kVectors] =
        make_uint4(kPoison, kPoison, kPoison, kPoison);
  if (thread == 0) {
    mbarrier_init(barriers);
    mbarrier_init(barriers + 8);
    mbarrier_init_fence();
  }
  proxy_fence();
  cluster_barrier();

  const long long begin = clock64();
  bool wrong = false;
  for (int s = 0; s < steps; ++s) {
    const auto& state = storage.states[s % 2];
    const uint32_t barrier = barriers + s % 2 * 8;
    if (kAsync && thread == 0) mbarrier_expect(barrier, kSize * kBytes);
#pragma unroll
    for (int j = 0; j < kOfThread; ++j) {
      const int i = thread + j * kThreads, to = i / kVectors, v = i % kVectors;
      if (kAll % kThreads && i >= kAll) break;
      const uint32_t address = address_in(shared_address(&state[rank][v]), to);
      const uint4 value = vector_of(s, 4 * (rank * kVectors + v));
      if constexpr (kAsync)
        store_async(address, value, address_in(barrier, to));
      else
        store_in_cluster(address, value);
    }
    if constexpr (kAsync)
      mbarrier_wait(barrier, s / 2);
    else
      cluster_barrier();
    const auto is_wrong = [&](int i) {
      return differs(state[i / kVectors][i % kVectors], vector_of(s, 4 * i));
    };
    if constexpr (kCheckAll)
      for (int i = thread; i < kAll; i += kThreads) wrong |= is_wrong(i);
    else
      wrong |= is_wrong((thread + s * 97) & (kAll - 1));
    block_barrier();
  }
  cluster_barrier();  // no block ends while another may store in it
  finish(report, begin, wrong);
}

template <int kSize, int kBytes, bool kAsync>
void measure_push(Bench& bench) {
  constexpr int kSteps = 2000, kCheckedSteps = 64;
  const int shared_bytes = std::max(static_cast<int>(sizeof(Storage<kBytes>)), kOneBlockEach);
  const auto kernel = push_kernel<kSize, kBytes, kAsync, false>;
  const int clusters = clusters_at_once(bench, kernel, kSize, shared_bytes);
  if (clusters == 0) throw std::runtime_error("the device takes no cluster of " + std::to_string(kSize));
  const auto measure = [&](void (*chosen)(Report*, int), int steps) {
    return bench.measure(
        clusters * kSize, steps, [] {},
        [&] { launch_clusters(bench, chosen, clusters, kSize, shared_bytes, bench.report, steps); });
  };
  const Times checked = measure(push_kernel<kSize, kBytes, kAsync, true>, kCheckedSteps);
  const Times times = measure(kernel, kSteps);
  Point()
      .set("what", kAsync ? "st.async" : "st and cluster barrier")
      .set("cluster", kSize)
      .set("clusters", clusters)
      .set("bytes", kBytes)  // of a block, to each block
      .set(times)
      .print(checked.ok && times.ok);
}

template <int kSize>
void measure_size(Bench& bench) {
  measure_push<kSize, 512, true>(bench);
  measure_push<kSize, 512, false>(bench);
  measure_push<kSize, 4096, true>(bench);
  measure_push<kSize, 4096, false>(bench);
}

void section(Bench& bench) {
  measure_size<4>(bench);
  measure_size<8>(bench);
}

}  // namespace
}  // namespace fusedlstm::micro

int main(int argc, char** argv) {
  return fusedlstm::micro::run(argc, argv, fusedlstm::micro::section);
}
