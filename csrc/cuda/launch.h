// Starting a kernel, with its errors as exceptions.
#pragma once

#include <cstddef>

#include "stream.h"

namespace fusedlstm::cuda {

struct Launch {
  unsigned blocks, threads;
  Stream stream;
  std::size_t shared_memory = 0;  // bytes of dynamic shared memory a block gets
  bool cooperative = false;       // all blocks are resident at once, or the launch fails
};

}  // namespace fusedlstm::cuda

#ifndef __CUDACC__
#include "device.cuh"  // its host twin has launch() and fits() too
#else

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace fusedlstm::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("fusedlstm: ") + what + " failed: " + cudaGetErrorString(error));
}

inline void allow_shared_memory(const char* name, const void* kernel, std::size_t bytes) {
  if (bytes <= 48 * 1024) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        name);
}

// Whether the current device takes all blocks of a launch at once.
template <class... Parameters>
bool fits(void (*kernel)(Parameters...), const Launch& launch) {
  int device = 0, multiprocessors = 0, shared_limit = 0, blocks = 0;
  check(cudaGetDevice(&device), "a query of the device");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "a query of the device");
  check(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "a query of the device");
  if (launch.shared_memory > static_cast<std::size_t>(shared_limit)) return false;
  allow_shared_memory("a query of the kernel", reinterpret_cast<const void*>(kernel), launch.shared_memory);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(launch.threads),
                                                      launch.shared_memory),
        "a query of the kernel");
  return int64_t{blocks} * multiprocessors >= launch.blocks;
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Launch& launch, Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = launch.blocks;
  config.blockDim = launch.threads;
  config.dynamicSmemBytes = launch.shared_memory;
  config.stream = launch.stream;
  config.attrs = &attribute;
  config.numAttrs = launch.cooperative ? 1 : 0;
  allow_shared_memory(name, reinterpret_cast<const void*>(kernel), launch.shared_memory);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

}  // namespace fusedlstm::cuda

#endif
