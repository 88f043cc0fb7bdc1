// Asynchronous copies of one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulation/stores.h"

namespace fusedlstm::emulation {

// Each copy reads and writes at a random moment between its start and the wait that covers its group.
class CopyQueue : public Background {
 public:
  void start(void* shared, const void* global, const StoreBuffer& view);
  void commit_group() { ++group_; }
  void wait(unsigned pending_groups);
  void finish();  // all of them, the uncommitted ones too
  void advance(Random& random, bool stalled) override;

 private:
  struct Copy {
    uint32_t* to;
    const uint32_t* from;
    const StoreBuffer* view;
    unsigned group;
    bool late;  // comes only when it must
  };
  void perform(std::size_t copy);

  std::vector<Copy> copies_;
  unsigned group_ = 0;  // the one that copies are added to; those before it are committed
};

}  // namespace fusedlstm::emulation
