// Host twins of csrc/cuda/runtime.h: start() runs the kernel to its end before it returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "cuda/stream.h"
#include "emulation/emulator.h"

namespace fusedlstm::cuda {

inline std::size_t shared_memory_limit() {
  return emulation::kSharedMemoryLimit;
}

template <class Kernel>
void set_shared_memory(const char* name, Kernel* kernel, std::size_t bytes) {
  emulation::set_shared_memory(name, reinterpret_cast<const void*>(kernel), bytes);
}

template <class Kernel>
int64_t resident_blocks(const char*, Kernel*, const Launch&) {
  return int64_t{emulation::multiprocessors()} * emulation::blocks_per_multiprocessor();
}

template <class... Parameters, class... Arguments>
bool start(const char* name, void (*kernel)(Parameters...), const Launch& launch, Arguments&&... arguments) {
  if (launch.cooperative && emulation::refuses_cooperative_launches()) return false;
  const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  emulation::run({name, reinterpret_cast<const void*>(kernel), launch.blocks, launch.threads,
                  launch.shared_memory, launch.cooperative},
                 [&] { std::apply(kernel, parameters); });
  return true;
}

}  // namespace fusedlstm::cuda
