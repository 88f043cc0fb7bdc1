// What the hardware does in its own time: stores on their way to memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "emulation/random.h"

namespace fusedlstm::emulation {

// Something with effects still to come. The machine advances those on its list at random moments; `stalled`
// tells that nothing else happens in the grid, so that effects which were to be late have to come now.
class Background {
 public:
  using List = std::vector<Background*>;
  virtual ~Background() = default;
  virtual void advance(Random& random, bool stalled) = 0;  // lets some of the effects happen

 protected:
  void enlist(List& list);
  void delist(List& list);

 private:
  std::size_t position_ = 0;
  bool enlisted_ = false;
};

// Relaxed stores that other blocks do not see yet. One buffer belongs to each thread, warp and block; a
// barrier moves what the threads that met hold to the buffer they share. So an inner buffer is always newer
// than the outer ones, and its chain of buffers is all that a thread sees before memory.
class StoreBuffer : public Background {
 public:
  StoreBuffer* outer = nullptr;

  void store(uint32_t* address, uint32_t value);
  uint32_t load(const uint32_t* address) const;
  void commit_chain();  // this and all outer buffers, the oldest first
  void move_to(StoreBuffer& other);
  void advance(Random& random, bool stalled) override;
  bool empty() const { return entries_.empty(); }

 private:
  struct Entry {
    uint32_t* address;
    uint32_t value;
    bool late;  // goes to memory only when it must
  };
  void commit(std::size_t entry);
  void drop(uint32_t* address);
  void remove(std::size_t entry);
  void clear();

  std::vector<Entry> entries_;  // one for an address, in an order that does not depend on addresses
  std::unordered_map<const uint32_t*, std::size_t> where_;
};

}  // namespace fusedlstm::emulation
