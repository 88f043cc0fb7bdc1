// How long the host takes to launch a kernel, which bounds a loop over short steps.
#include <algorithm>
#include <array>
#include <chrono>

#include "launch.h"
#include "launch_time.h"

namespace fusedlstm::cuda {
namespace {

__global__ void empty_kernel() {}

// While it lives, calls of this thread do not end a capture that another thread may have begun.
class RelaxedCapture {
 public:
  RelaxedCapture() { check(cudaThreadExchangeStreamCaptureMode(&mode_), "launch_time"); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // then the one before
};

// Of a launch, on a stream of its own: on the caller's, a full queue would make launches wait.
double measure() {
  const RelaxedCapture relaxed;
  Stream stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "launch_time");
  const Launch settings{.blocks = 1, .threads = 32, .stream = stream};
  launch("launch_time", &empty_kernel, settings);  // the first one loads the kernel
  std::array<double, 31> us;
  for (double& each : us) {
    const auto start = std::chrono::steady_clock::now();
    launch("launch_time", &empty_kernel, settings);
    each = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  }
  check(cudaStreamDestroy(stream), "launch_time");  // without waiting: the device may be waiting for the host
  const auto middle = us.begin() + us.size() / 2;
  std::nth_element(us.begin(), middle, us.end());
  return *middle;
}

}  // namespace

double launch_us() {
  static const double us = measure();
  return us;
}

}  // namespace fusedlstm::cuda
