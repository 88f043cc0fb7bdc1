// wgmma with the weights (A) in shared memory and in registers: cycles of an instruction, and TFLOP/s.
#include <cmath>

#include "wgmma.cuh"

namespace fusedlstm::micro {
namespace {

constexpr int kGroups = 2, kRows = 64 * kGroups;  // warpgroups, each with 64 rows of A
constexpr int kDepth = 512, kKBlocks = kDepth / 16;

enum class Weights { shared, registers };

// Multiples of 1/128 in [-1, 1): exact in bfloat16, and so are their sums of products in float32. Power, and
// with it the clock, depends on the data, so they are not zeros.
__host__ __device__ inline float element(int matrix, int row, int k) {
  uint32_t x = static_cast<uint32_t>(matrix * 7919 + row * 1031 + k) * 2654435761u;
  x = (x ^ x >> 13) * 2246822519u;
  return static_cast<float>(static_cast<int>(x >> 24) - 128) / 128;
}

template <Layout kLayout>
__device__ __forceinline__ void fill(unsigned char* operand, int matrix, int first_row, int rows,
                                     int threads) {
  for (int i = static_cast<int>(thread_index()) % threads; i < rows * kDepth; i += threads) {
    const int row = i / kDepth, k = i % kDepth;
    *reinterpret_cast<BFloat16*>(operand + offset_in<kLayout>(rows, row, k)) =
        __float2bfloat16_rn(element(matrix, first_row + row, k));
  }
}
__device__ __forceinline__ uint32_t pair_of(int row, int k) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(element(0, row, k), element(0, row, k + 1));
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// A step is `passes` times the whole product, each a group of instructions, and a wait for all of them. `out`
// is [kRows, N].
template <Weights kWeights, int N, Layout kLayout>
__global__ void __launch_bounds__(kGroups * 128, 1)
    product_kernel(float* out, Report* report, int passes, int steps) {
  constexpr bool kShared = kWeights == Weights::shared;
  const int thread = static_cast<int>(thread_index()), lane = lane_index();
  const int group = shuffle(thread / 128, 0);  // known to be the same in a warp, as descriptors must be
  unsigned char* const state = dynamic_shared();
  unsigned char* const weights = state + N * kDepth * 2 + group * 64 * kDepth * 2;
  fill<kLayout>(state, 1, 0, N, kGroups * 128);
  if (kShared) fill<kLayout>(weights, 0, group * 64, 64, 128);
  // Warp w of a group has rows 16w to 16w + 15: this lane rows `row` and `row` + 8.
  const int row = thread / 32 * 16 + lane / 4, column = lane % 4 * 2;
  uint32_t a[kShared ? 1 : kKBlocks][4];
  if constexpr (!kShared)
#pragma unroll
    for (int k = 0; k < kKBlocks; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[k][i] = pair_of(row + i % 2 * 8, k * 16 + column + i / 2 * 8);
  proxy_fence();
  block_barrier();

  const uint64_t of_state = descriptor<kLayout>(state), of_weights = descriptor<kLayout>(weights);
  float sums[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i)
    sums[i] = __uint_as_float(0x7fffffff);  // NaN, unless the first product sets it
  const long long begin = clock64();
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    keep_in_place(sums);
    int pass = 0;
#pragma unroll 1
    do {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kKBlocks; ++k) {
        const int accumulate = k > 0 || pass > 0;
        const uint64_t b = of_state + step_to<kLayout>(N, k);
        if constexpr (kShared)
          wgmma<N>(sums, of_weights + step_to<kLayout>(64, k), b, accumulate);
        else
          wgmma<N>(sums, a[k], b, accumulate);
      }
      wgmma_commit();
    } while (++pass < passes);
    wgmma_wait();
    keep_in_place(sums);
  }
  block_barrier();
  finish(report, begin, false);
  if (block_index() != grid_size() - 1) return;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) out[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = sums[i];
}

// Whether `found` is `passes` times A B.
bool is_product(const std::vector<float>& found, int columns, int passes) {
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < columns; ++c) {
      double sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += double{element(0, r, k)} * element(1, c, k);
      if (!(std::abs(found[r * columns + c] - passes * sum) < 1e-3)) return false;
    }
  return true;
}

template <Weights kWeights, int N, Layout kLayout>
void measure_product(Bench& bench) {
  constexpr int kSteps = 5000;
  constexpr size_t kCount = size_t{kRows} * N;
  constexpr size_t kShared = N * kDepth * 2 + (kWeights == Weights::shared ? kRows * kDepth * 2 : 0);
  const int blocks = bench.multiprocessors();
  float* const out = device_array<float>(kCount);
  for (const int passes : {1, 4}) {
    const Times times = bench.measure(
        blocks, kSteps,
        [&] { check(cudaMemsetAsync(out, 0xff, kCount * sizeof(float), bench.stream), "a fill"); },
        [&] {
          launch("products", product_kernel<kWeights, N, kLayout>,
                 {static_cast<unsigned>(blocks), kGroups * 128, bench.stream, kShared}, out, bench.report,
                 passes, kSteps);
        });
    std::vector<float> found(kCount);
    check(cudaMemcpy(found.data(), out, kCount * sizeof(float), cudaMemcpyDeviceToHost), "a copy");
    const double instructions = static_cast<double>(kKBlocks) * passes * kGroups;
    Point()
        .set("what", kWeights == Weights::shared ? "A in shared memory" : "A in registers")
        .set("layout", kLayout == Layout::plain ? "no swizzle" : "128-byte swizzle")
        .set("n", N)
        .set("k", kDepth)
        .set("warpgroups", kGroups)
        .set("passes", passes)
        .set("clocks_an_instruction", times.clocks / instructions)
        .set("tflops", 2e-6 * kRows * N * kDepth * passes * blocks / times.us)
        .set(times)
        .print(times.ok && is_product(found, N, passes));
  }
  check(cudaFree(out), "memory");
}

template <int N>
void measure_columns(Bench& bench) {
  measure_product<Weights::shared, N, Layout::plain>(bench);
  measure_product<Weights::shared, N, Layout::swizzled>(bench);
  measure_product<Weights::registers, N, Layout::plain>(bench);
  measure_product<Weights::registers, N, Layout::swizzled>(bench);
}

void section(Bench& bench) {
  measure_columns<32>(bench);
  measure_columns<64>(bench);
}

}  // namespace
}  // namespace fusedlstm::micro

int main(int argc, char** argv) {
  return fusedlstm::micro::run(argc, argv, fusedlstm::micro::section);
}
