#include "context.h"

#ifndef USE_CUDA
#define USE_CUDA  // for the declarations of torch's CUDA shims
#endif
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

#include "../checks.h"
#include "launch_time.h"

namespace fusedlstm::cuda {
namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) fail("CUDA failed: ", cudaGetErrorString(error));
}
void check(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) fail("cuBLAS failed: ", cublasGetStatusString(status));
}
void check(const char* what, AOTITorchError error) {
  if (error != TORCH_SUCCESS) fail("CUDA failed: torch gave no ", what);
}

cudaDataType_t data_type(Type type) {
  switch (type) {
    case Type::float32:
      return CUDA_R_32F;
    case Type::float64:
      return CUDA_R_64F;
    case Type::float16:
      return CUDA_R_16F;
    case Type::bfloat16:
      return CUDA_R_16BF;
  }
  fail("unknown type");
}

Limits limits_of(int device) {
  const auto attribute = [device](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  // Bits of the bus to bytes; the memory sends two in a cycle of its clock, which is given in kHz.
  const double memory_gb_s =
      attribute(cudaDevAttrGlobalMemoryBusWidth) / 8.0 * 2 * attribute(cudaDevAttrMemoryClockRate) * 1e-6;
  return {.multiprocessors = attribute(cudaDevAttrMultiProcessorCount),
          .threads_per_multiprocessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor),
          .registers_per_multiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor),
          .shared_memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          .compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                                attribute(cudaDevAttrComputeCapabilityMinor),
          .clock_ghz = attribute(cudaDevAttrClockRate) * 1e-6,
          .l2_bytes = attribute(cudaDevAttrL2CacheSize),
          // Devices that share the host's memory do not name its clock.
          .memory_gb_s = memory_gb_s > 0 ? memory_gb_s : Limits{}.memory_gb_s};
}

// Whether the calling thread has a context. It need not be the device's own, which cudaSetDevice would put in
// its place: a green context has a part of the device.
bool has_context() {
  using GetCurrent = CUresult (*)(CUcontext*);
  static const GetCurrent get_current = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuCtxGetCurrent", &found, 12000, cudaEnableDefault, &result));
    return reinterpret_cast<GetCurrent>(found);
  }();
  CUcontext context = nullptr;
  return get_current && get_current(&context) == CUDA_SUCCESS && context;
}

// Whether what is launched on a stream goes into a graph. No answer means that the stream is the default one
// and another captures: a launch would fail there, and says so itself.
bool captures(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  cudaGetLastError();
  return false;
}

cublasOperation_t operation(const Matrix& matrix) {
  return matrix.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
}

}  // namespace

struct Context::Implementation {
  torch::stable::accelerator::DeviceGuard guard;
  int device;
  Type type;
  cublasComputeType_t compute;
  Stream stream = nullptr;
  cublasHandle_t blas = nullptr;
  cublasMath_t math_before{};

  Implementation(int device, Type type, bool tf32)
      : guard(device),
        device(device),
        type(type),
        compute(type == Type::float64           ? CUBLAS_COMPUTE_64F
                : type == Type::float32 && tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                : CUBLAS_COMPUTE_32F) {
    // The guard does nothing where the device is the current one already, and a thread of autograd's may then
    // have no context yet, of which torch would warn at the handle.
    if (!has_context()) check(cudaSetDevice(device));
    check("stream", aoti_torch_get_current_cuda_stream(device, reinterpret_cast<void**>(&stream)));
    // torch's handle of this thread, with its stream and workspace set: results repeat from run to run.
    check("cuBLAS handle", torch_get_current_cuda_blas_handle(reinterpret_cast<void**>(&blas)));
    // torch sets the handle's mode for its own products; under TF32 mode CUBLAS_COMPUTE_32F would round as
    // well.
    check(cublasGetMathMode(blas, &math_before));
    check(cublasSetMathMode(
        blas,
        static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  }
  ~Implementation() { cublasSetMathMode(blas, math_before); }
};

Context::Context(int device, Type type, bool tf32)
    : implementation_(std::make_unique<Implementation>(device, type, tf32)) {}
Context::~Context() = default;

Stream Context::stream() const {
  return implementation_->stream;
}

// The clock's rate is asked of the driver for 0.38 ms (an H200, CUDA 13.0), so each device is asked once.
Limits Context::limits() const {
  static std::mutex mutex;
  static std::map<int, Limits> known;
  Limits limits;
  {
    const std::lock_guard lock(mutex);
    auto found = known.find(implementation_->device);
    if (found == known.end())
      found = known.emplace(implementation_->device, limits_of(implementation_->device)).first;
    limits = found->second;
  }
  limits.launch_us = captures(implementation_->stream) ? 0 : launch_us();
  return limits;
}

constexpr int64_t kSmallProduct = int64_t{1} << 22;  // multiplications

// cuBLAS stores matrices by columns: what it takes for a matrix is the transpose of ours, so c^T = b^T a^T.
void Context::multiply(const Product& p) const {
  const Implementation& self = *implementation_;
  if (p.m == 0 || p.n == 0) return;
  const cudaDataType_t in = data_type(self.type);
  const cudaDataType_t out = p.wide && self.type != Type::float64 ? CUDA_R_32F : in;
  const double one64 = 1, zero64 = 0;
  const float one32 = 1, zero32 = 0;
  const bool is64 = self.type == Type::float64;
  const void* const one = is64 ? static_cast<const void*>(&one64) : &one32;
  const void* const zero = is64 ? static_cast<const void*>(&zero64) : &zero32;
  const void* const beta = p.accumulate ? one : zero;
  // Small products are float32 where TF32 may be, as some of cuDNN's are: on an H200 those of TF32 had three
  // times its error (grad_h0 at T 1, N 5, H 9). 2^22 multiplications are 0.13 us of its 67 TFLOP/s.
  const bool small = self.type == Type::float32 && p.m * p.n * p.k * p.batch <= kSmallProduct;
  const cublasComputeType_t compute = small ? CUBLAS_COMPUTE_32F : self.compute;
  // A single product has an entry of its own, with heuristics of its own.
  if (p.batch == 1) {
    check(cublasGemmEx_64(self.blas, operation(p.b), operation(p.a), p.n, p.m, p.k, one, p.b.data, in,
                          p.b.stride, p.a.data, in, p.a.stride, beta, p.c, out, p.c_stride, compute,
                          CUBLAS_GEMM_DEFAULT));
  } else {
    check(cublasGemmStridedBatchedEx_64(self.blas, operation(p.b), operation(p.a), p.n, p.m, p.k, one,
                                        p.b.data, in, p.b.stride, p.b.next, p.a.data, in, p.a.stride,
                                        p.a.next, beta, p.c, out, p.c_stride, p.c_next, p.batch, compute,
                                        CUBLAS_GEMM_DEFAULT));
  }
}

}  // namespace fusedlstm::cuda
