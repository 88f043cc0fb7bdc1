// The host and the card: what a launch costs on a stream and in a graph, and the rate of a large copy.
#include <chrono>

#include "timing.cuh"

namespace fusedlstm::micro {
namespace {

constexpr int kLaunches = 1000;  // of a batch; the driver's queue takes them without a wait
constexpr size_t kCopyBytes = size_t{1} << 30;

// Empty, but for the launches that are counted to see that all of them run.
__global__ void empty_kernel(unsigned* count) {
  if (count) atomicAdd(count, 1u);
}

double us_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

void start_batch(const Bench& bench, bool cooperative, unsigned* count) {
  for (int i = 0; i < kLaunches; ++i)
    launch("an empty kernel", empty_kernel, {1, 32, bench.stream, 0, cooperative}, count);
}

// Whether a batch runs as many kernels as it has launches.
template <class Start>
bool all_run(const Bench& bench, unsigned* count, const Start& start) {
  check(cudaMemsetAsync(count, 0, sizeof *count, bench.stream), "a fill");
  start();
  unsigned found = 0;
  check(cudaStreamSynchronize(bench.stream), "a launch");
  check(cudaMemcpy(&found, count, sizeof found, cudaMemcpyDeviceToHost), "a copy");
  return found == kLaunches;
}

// Batches of launches: until the host has started all of them, and until the GPU has finished them.
template <class Start>
void measure_batches(const Bench& bench, const char* what, const Start& start, bool ok) {
  std::vector<double> host, all;
  const auto from = std::chrono::steady_clock::now();
  for (int batch = 0; batch <= kMinRepeats || us_since(from) < bench.seconds * 1e6; ++batch) {
    const auto begin = std::chrono::steady_clock::now();
    start();
    const double started = us_since(begin);
    check(cudaStreamSynchronize(bench.stream), "a launch");
    const double finished = us_since(begin);
    if (batch == 0) continue;
    host.push_back(started / kLaunches);
    all.push_back(finished / kLaunches);
  }
  std::sort(host.begin(), host.end());
  std::sort(all.begin(), all.end());
  Point()
      .set("what", what)
      .set("launches", kLaunches)
      .set("host_us", host[host.size() / 2])
      .set("host_us_min", host.front())
      .set("us", all[all.size() / 2])
      .set("us_min", all.front())
      .set("repeats", static_cast<int>(all.size()))
      .print(ok);
}

cudaGraphExec_t capture(const Bench& bench, bool cooperative, unsigned* count) {
  cudaGraph_t graph{};
  cudaGraphExec_t executable{};
  check(cudaStreamBeginCapture(bench.stream, cudaStreamCaptureModeThreadLocal), "a capture");
  start_batch(bench, cooperative, count);
  check(cudaStreamEndCapture(bench.stream, &graph), "a capture");
  check(cudaGraphInstantiate(&executable, graph, 0), "a graph");
  check(cudaGraphDestroy(graph), "a graph");
  return executable;
}

void measure_launches(const Bench& bench, bool cooperative, unsigned* count) {
  const bool on_stream = all_run(bench, count, [&] { start_batch(bench, cooperative, count); });
  measure_batches(
      bench, cooperative ? "cooperative launch" : "launch", [&] { start_batch(bench, cooperative, nullptr); },
      on_stream);
  const cudaGraphExec_t counted = capture(bench, cooperative, count);
  const cudaGraphExec_t timed = capture(bench, cooperative, nullptr);
  const auto replay = [&](cudaGraphExec_t graph) { check(cudaGraphLaunch(graph, bench.stream), "a graph"); };
  const bool in_graph = all_run(bench, count, [&] { replay(counted); });
  measure_batches(
      bench, cooperative ? "cooperative graph node" : "graph node", [&] { replay(timed); }, in_graph);
  check(cudaGraphExecDestroy(counted), "a graph");
  check(cudaGraphExecDestroy(timed), "a graph");
}

void measure_copy(const Bench& bench) {
  auto* const source = device_array<unsigned char>(kCopyBytes);
  auto* const target = device_array<unsigned char>(kCopyBytes);
  check(cudaMemsetAsync(source, 0x5a, kCopyBytes, bench.stream), "a fill");
  std::vector<double> us;
  double total = 0;
  for (int run = 0; run <= kMinRepeats || total < bench.seconds * 1e6; ++run) {
    check(cudaEventRecord(bench.begin, bench.stream), "an event");
    check(cudaMemcpyAsync(target, source, kCopyBytes, cudaMemcpyDeviceToDevice, bench.stream), "a copy");
    check(cudaEventRecord(bench.end, bench.stream), "an event");
    check(cudaEventSynchronize(bench.end), "a copy");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, bench.begin, bench.end), "an event");
    if (run == 0) continue;
    us.push_back(1e3 * ms);
    total += 1e3 * ms;
  }
  std::sort(us.begin(), us.end());
  std::vector<unsigned char> copied(kCopyBytes);
  check(cudaMemcpy(copied.data(), target, kCopyBytes, cudaMemcpyDeviceToHost), "a copy");
  const bool ok = std::all_of(copied.begin(), copied.end(), [](unsigned char byte) { return byte == 0x5a; });
  const double median = us[us.size() / 2];
  Point()
      .set("what", "copy")
      .set("bytes", kCopyBytes)
      .set("us", median)
      .set("us_min", us.front())
      .set("gb_s", 2e-3 * kCopyBytes / median)  // read and written
      .set("repeats", static_cast<int>(us.size()))
      .print(ok);
  check(cudaFree(source), "memory");
  check(cudaFree(target), "memory");
}

void section(Bench& bench) {
  const cudaDeviceProp& gpu = bench.properties;
  Point()
      .set("what", "gpu")
      .set("multiprocessors", gpu.multiProcessorCount)
      .set("compute_capability", 10 * gpu.major + gpu.minor)
      .set("l2_bytes", gpu.l2CacheSize)
      .set("memory_bytes", gpu.totalGlobalMem)
      .set("shared_memory_of_a_block", gpu.sharedMemPerBlockOptin)
      .print(gpu.l2CacheSize > 0);
  unsigned* const count = device_array<unsigned>(1);
  measure_launches(bench, false, count);
  measure_launches(bench, true, count);
  check(cudaFree(count), "memory");
  measure_copy(bench);
}

}  // namespace
}  // namespace fusedlstm::micro

int main(int argc, char** argv) {
  return fusedlstm::micro::run(argc, argv, fusedlstm::micro::section);
}
