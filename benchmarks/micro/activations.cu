// tanh.approx against the activations of the kernels, made of ex2 and rcp: throughput and error.
#include <cmath>

#include "cuda/cells.cuh"
#include "timing.cuh"

namespace fusedlstm::micro {
namespace {

struct Approximate {
  static __device__ __forceinline__ float tanh(float x) {
    float out;
    asm("tanh.approx.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
  }
  static __device__ __forceinline__ float sigmoid(float x) { return fmaf(0.5f, tanh(0.5f * x), 0.5f); }
};

constexpr int kBusyThreads = 1024, kChains = 4;
constexpr int kSamples = 1 << 20;
constexpr float kFar = 20;

template <class Math, bool kTanh>
__device__ __forceinline__ float activation(float x) {
  return kTanh ? Math::tanh(x) : Math::sigmoid(x);
}

__host__ __device__ inline float sample(int i) {
  return kFar * (static_cast<float>(2 * i - kSamples) / kSamples);
}

template <class Math, bool kTanh>
__global__ void __launch_bounds__(kBusyThreads, 1) rate_kernel(Report* report, int steps) {
  float x[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) x[i] = static_cast<float>(thread_index()) / kBusyThreads + i;
  block_barrier();
  const long long begin = clock64();
#pragma unroll 1
  for (int s = 0; s < steps; ++s)
#pragma unroll
    for (int i = 0; i < kChains; ++i) x[i] = fmaf(activation<Math, kTanh>(x[i]), 3.0f, -1.0f);
  block_barrier();
  bool wrong = false;
#pragma unroll
  for (int i = 0; i < kChains; ++i)
    wrong |= !(x[i] >= -4.01f && x[i] <= 2.01f);  // what an activation can give
  finish(report, begin, wrong);
}

template <class Math, bool kTanh>
__global__ void __launch_bounds__(kThreads) values_kernel(float* out) {
  const int i = static_cast<int>(block_index() * block_size() + thread_index());
  out[i] = activation<Math, kTanh>(sample(i));
}

// The greatest absolute error over [-20, 20]; NaN where a value is missing.
template <class Math, bool kTanh>
double greatest_error(const Bench& bench) {
  float* const out = device_array<float>(kSamples);
  launch("activations", values_kernel<Math, kTanh>, {kSamples / kThreads, kThreads, bench.stream}, out);
  check(cudaStreamSynchronize(bench.stream), "a launch");
  std::vector<float> found(kSamples);
  check(cudaMemcpy(found.data(), out, kSamples * sizeof(float), cudaMemcpyDeviceToHost), "a copy");
  check(cudaFree(out), "memory");
  double greatest = 0;
  for (int i = 0; i < kSamples; ++i) {
    const double x = sample(i), expected = kTanh ? std::tanh(x) : 1 / (1 + std::exp(-x));
    const double error = std::abs(found[i] - expected);
    if (!(error <= greatest)) greatest = error;
    if (std::isnan(greatest)) break;
  }
  return greatest;
}

template <class Math, bool kTanh>
void measure_activation(Bench& bench, const char* math, double bound) {
  constexpr int kSteps = 4096;
  const int blocks = bench.multiprocessors();
  const Times times = bench.measure(
      blocks, kSteps, [] {},
      [&] {
        launch("activations", rate_kernel<Math, kTanh>,
               {static_cast<unsigned>(blocks), kBusyThreads, bench.stream}, bench.report, kSteps);
      });
  const double error = greatest_error<Math, kTanh>(bench);
  Point()
      .set("what", kTanh ? "tanh" : "sigmoid")
      .set("math", math)
      .set("clocks_of_32", times.clocks * 32 / (kBusyThreads * kChains))  // on a multiprocessor
      .set("greatest_error", error)
      .set(times)
      .print(times.ok && error < bound);
}

void section(Bench& bench) {
  measure_activation<FastMath, true>(bench, "ex2 and rcp", 2e-6);
  measure_activation<FastMath, false>(bench, "ex2 and rcp", 2e-6);
  // PTX ISA, "tanh": a relative error of at most 2^-11.
  measure_activation<Approximate, true>(bench, "tanh.approx", 1.0 / 1024);
  measure_activation<Approximate, false>(bench, "tanh.approx", 1.0 / 1024);
}

}  // namespace
}  // namespace fusedlstm::micro

int main(int argc, char** argv) {
  return fusedlstm::micro::run(argc, argv, fusedlstm::micro::section);
}
