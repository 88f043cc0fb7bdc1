#include "emulation/copies.h"

#include "emulation/machine.h"

namespace fusedlstm::emulation {

void CopyQueue::start(void* shared, const void* global, const StoreBuffer& view) {
  copies_.push_back({static_cast<uint32_t*>(shared), static_cast<const uint32_t*>(global), &view, group_,
                     machine().is_late()});
  enlist(machine().background);
}

void CopyQueue::perform(std::size_t copy) {
  const auto [to, from, view, group, late] = copies_[copy];
  for (int word = 0; word < 4; ++word) to[word] = view->load(from + word);
  copies_[copy] = copies_.back();
  copies_.pop_back();
  if (copies_.empty()) delist(machine().background);
  machine().progressed();
}

void CopyQueue::wait(unsigned pending_groups) {
  for (std::size_t copy = copies_.size(); copy-- > 0;)
    if (copies_[copy].group + pending_groups < group_) perform(copy);
}

void CopyQueue::finish() {
  while (!copies_.empty()) perform(copies_.size() - 1);
}

void CopyQueue::advance(Random& random, bool stalled) {
  const unsigned copy = random.below(static_cast<unsigned>(copies_.size()));
  if (stalled || !copies_[copy].late) perform(copy);
}

}  // namespace fusedlstm::emulation
