// What launch.h needs of the CUDA runtime. A host build has twins of these functions.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "stream.h"

namespace fusedlstm::cuda {

// The runtime keeps an error for whoever asks next. It is taken here, or torch would blame its next kernel.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("fusedlstm: ") + what + " failed: " + cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "a query of the device");
  check(cudaDeviceGetAttribute(&value, name, device), "a query of the device");
  return value;
}

// The most dynamic shared memory, in bytes, that a block can have.
inline std::size_t shared_memory_limit() {
  return static_cast<std::size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

// Lets the blocks of a kernel have as many bytes.
template <class Kernel>
void set_shared_memory(const char* name, Kernel* kernel, std::size_t bytes) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        name);
}

// Blocks that the whole device runs at once.
template <class Kernel>
int64_t resident_blocks(const char* name, Kernel* kernel, const Launch& launch) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(launch.threads),
                                                      launch.shared_memory),
        name);
  return int64_t{blocks} * device_attribute(cudaDevAttrMultiProcessorCount);
}

// False where the device refuses a cooperative launch.
template <class... Parameters, class... Arguments>
bool start(const char* name, void (*kernel)(Parameters...), const Launch& launch, Arguments&&... arguments) {
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
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (launch.cooperative &&
      (error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorLaunchOutOfResources)) {
    cudaGetLastError();
    return false;
  }
  check(error, name);
  return true;
}

}  // namespace fusedlstm::cuda
