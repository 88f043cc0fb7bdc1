// Starting a kernel, with its errors as exceptions.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "stream.h"

// What follows needs of the device: shared_memory_limit, set_shared_memory, resident_blocks, start.
#ifdef __CUDACC__
#include "runtime.h"
#else
#include "device.cuh"  // its host twin has them too
#endif

namespace fusedlstm::cuda {

// Beyond 48 KiB a kernel gets shared memory by an attribute that all threads of the process share. So it is
// always the most that the device has. If each launch set what it needs itself, it could take from the launch
// of another thread, between that thread's query and its launch.
template <class Kernel>
void allow_shared_memory(const char* name, Kernel* kernel, const Launch& launch) {
  if (launch.shared_memory > 48 * 1024) set_shared_memory(name, kernel, shared_memory_limit());
}

// For blocks that wait for each other. False, without a launch, where the device does not take all of them at
// once. A part of a device (a green context, MPS) may refuse what the whole device would take: that shows at
// the launch alone.
template <class... Parameters, class... Arguments>
bool launch_resident(const char* name, void (*kernel)(Parameters...), const Launch& launch,
                     Arguments&&... arguments) {
  if (launch.shared_memory > shared_memory_limit()) return false;
  allow_shared_memory(name, kernel, launch);
  return resident_blocks(name, kernel, launch) >= launch.blocks &&
         start(name, kernel, launch, std::forward<Arguments>(arguments)...);
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Launch& launch, Arguments&&... arguments) {
  allow_shared_memory(name, kernel, launch);
  if (!start(name, kernel, launch, std::forward<Arguments>(arguments)...))
    throw std::runtime_error(std::string("fusedlstm: ") + name +
                             " failed: the device does not take all of its blocks at once");
}

}  // namespace fusedlstm::cuda
