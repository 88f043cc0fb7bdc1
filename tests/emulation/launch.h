// The host twin of launch() in csrc/cuda/launch.h: runs the kernel to its end before it returns.
#pragma once

#include <functional>
#include <tuple>
#include <utility>

#include "cuda/launch.h"
#include "emulation/emulator.h"

namespace fusedlstm::cuda {

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Launch& launch, Arguments&&... arguments) {
  const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  emulation::run({name, launch.blocks, launch.threads, launch.shared_memory, launch.cooperative},
                 [&] { std::apply(kernel, parameters); });
}

template <class... Parameters>
bool fits(void (*)(Parameters...), const Launch& launch) {
  return launch.shared_memory <= emulation::kSharedMemoryLimit &&
         launch.blocks <= emulation::multiprocessors() * emulation::blocks_per_multiprocessor();
}

}  // namespace fusedlstm::cuda
