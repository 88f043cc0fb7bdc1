// What threads of a block or of a warp do together.
#include <cstring>

#include "emulation/machine.h"

namespace fusedlstm::emulation {

void block_barrier() {
  Machine& m = machine();
  m.pause(Machine::At::kElsewhere);
  Thread& self = m.current();
  Block& block = *self.owner;
  if (block.exited)
    m.fail("a block barrier that " + std::to_string(block.exited) + " threads of the block never reach");
  if (block.at_barrier.size() + 1 < block.block_size) {
    block.at_barrier.push_back(&self);
    self.waits_in = "a block barrier";
    return m.suspend();
  }
  for (Thread* thread : block.at_barrier) m.make_ready(*thread);
  block.at_barrier.clear();
  if (!m.background.empty()) block.share_stores();
  m.progressed();
}

void warp_collective(const char* name, void* operands, void (*perform)(Operands&)) {
  Machine& m = machine();
  m.pause(Machine::At::kElsewhere);
  Thread& self = m.current();
  Warp& warp = self.owner->warp_of(self);
  if (self.thread / 32 * 32 + 32 > self.in->block_size)
    m.fail(std::string(name) + " in a warp of fewer than 32 threads");
  if (warp.exited) m.fail(std::string(name) + " in a warp of which a thread has ended");
  if (warp.arrived && warp.perform != perform)
    m.fail(std::string(name) + " while other threads of its warp wait in " + warp.collective);
  warp.collective = name;
  warp.perform = perform;
  warp.operands[self.thread % 32] = operands;
  if (++warp.arrived < 32) {
    self.waits_in = name;
    return m.suspend();
  }
  warp.arrived = 0;
  perform(warp.operands);
  const unsigned first = self.thread / 32 * 32;
  for (unsigned i = first; i < first + 32; ++i)
    if (i != self.thread) m.make_ready(self.owner->threads[i]);
  m.progressed();
}

void warp_barrier() {
  warp_collective("warp_barrier", &machine().current(), [](Operands& lanes) {
    for (void* lane : lanes) {
      StoreBuffer& stores = static_cast<Thread*>(lane)->stores;
      stores.move_to(*stores.outer);
    }
  });
}

}  // namespace fusedlstm::emulation
