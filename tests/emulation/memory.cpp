// Accesses of device threads to shared and global memory.
#include <string>
#include <utility>

#include "emulation/machine.h"

namespace fusedlstm::emulation {
namespace {

void check_alignment(const void* address, std::size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    machine().fail(std::string("the address of ") + what + " is no multiple of " + std::to_string(bytes));
}

}  // namespace

void* shared_memory(std::size_t size) {
  Machine& m = machine();
  if (size > m.grid().shared_memory)
    m.fail("it uses " + std::to_string(size) + " bytes of shared memory, the launch gave " +
           std::to_string(m.grid().shared_memory));
  return m.current().owner->shared.get();
}

void load(const uint32_t* address, uint32_t* values, int words) {
  Machine& m = machine();
  check_alignment(address, 4 * words, "a load");
  m.polls(address);
  for (int i = 0; i < words; ++i) {
    if (i == 0 || m.tears()) m.pause(Machine::At::kLoad);
    values[i] = m.current().stores.load(address + i);
  }
}

void store(uint32_t* address, const uint32_t* values, int words) {
  Machine& m = machine();
  check_alignment(address, 4 * words, "a store");
  m.pause(Machine::At::kElsewhere);
  Thread& self = m.current();
  if (std::exchange(self.fenced, false)) self.stores.commit_chain();
  for (int i = 0; i < words; ++i) {
    static_cast<void>(*static_cast<volatile uint32_t*>(address + i));  // a wrong address must fail here
    self.stores.store(address + i, values[i]);
  }
}

// Orders what the thread has seen before what it stores later; that alone does not publish anything.
void fence() {
  Machine& m = machine();
  m.pause(Machine::At::kElsewhere);
  Thread& self = m.current();
  if (m.is_lazy())
    self.fenced = true;
  else
    self.stores.commit_chain();
}

void store_release(uint32_t* address, uint32_t value) {
  machine().current().fenced = true;
  store(address, &value, 1);
}

void copy_async(void* shared, const void* global) {
  Machine& m = machine();
  check_alignment(shared, 16, "the target of copy_async");
  check_alignment(global, 16, "the source of copy_async");
  Thread& self = m.current();
  const auto offset =
      reinterpret_cast<uintptr_t>(shared) - reinterpret_cast<uintptr_t>(self.owner->shared.get());
  if (offset >= m.grid().shared_memory || m.grid().shared_memory - offset < 16)
    m.fail("copy_async to an address outside the block's shared memory");
  self.copies.start(shared, global, self.stores);
  m.pause(Machine::At::kElsewhere);
}

void copy_async_commit() {
  machine().current().copies.commit_group();
}

void copy_async_wait(unsigned pending_groups) {
  machine().pause(Machine::At::kElsewhere);
  machine().current().copies.wait(pending_groups);
}

}  // namespace fusedlstm::emulation
