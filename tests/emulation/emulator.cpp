#include "emulation/emulator.h"

#include <mutex>

#include "emulation/machine.h"

namespace fusedlstm::emulation {

const Position* running = nullptr;

void outside_a_kernel() {
  throw Error("fusedlstm emulation: a device function was called outside a kernel");
}

void run(const Grid& grid, const std::function<void()>& thread) {
  static std::mutex one_launch;
  const std::lock_guard lock(one_launch);
  machine().run(grid, thread);
}

void set_seed(uint64_t seed) {
  machine().seed = seed;
  machine().launches = 0;
}

void set_multiprocessors(unsigned count) {
  machine().multiprocessors = count;
}

void set_blocks_per_multiprocessor(unsigned count) {
  machine().blocks_per_multiprocessor = count;
}

void refuse_cooperative_launches(bool refuse) {
  machine().refuses_cooperative_launches = refuse;
}

bool refuses_cooperative_launches() {
  return machine().refuses_cooperative_launches;
}

void set_shared_memory(const char* name, const void* kernel, std::size_t bytes) {
  std::size_t& allowed = machine().shared_memory.try_emplace(kernel, kSharedMemoryAtFirst).first->second;
  if (bytes < allowed)
    throw Error(std::string("fusedlstm emulation: ") + name + " must keep its " + std::to_string(allowed) +
                " bytes of shared memory, got " + std::to_string(bytes) +
                ": a launch of another thread may count on them");
  allowed = bytes;
}

uint64_t launches() {
  return machine().launches;
}

unsigned multiprocessors() {
  return machine().multiprocessors;
}

unsigned blocks_per_multiprocessor() {
  return machine().blocks_per_multiprocessor;
}

}  // namespace fusedlstm::emulation
