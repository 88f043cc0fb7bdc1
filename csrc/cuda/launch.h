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
#include "emulation/launch.h"  // in tests/
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace fusedlstm::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("fusedlstm: ") + what + " failed: " + cudaGetErrorString(error));
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
  if (launch.shared_memory > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(launch.shared_memory)),
          name);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

}  // namespace fusedlstm::cuda

#endif
