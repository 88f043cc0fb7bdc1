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
