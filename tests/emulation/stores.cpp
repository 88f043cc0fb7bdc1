#include "emulation/stores.h"

#include "emulation/machine.h"

namespace fusedlstm::emulation {

void Background::enlist(List& list) {
  if (enlisted_) return;
  position_ = list.size();
  list.push_back(this);
  enlisted_ = true;
}

void Background::delist(List& list) {
  if (!enlisted_) return;
  list[position_] = list.back();
  list[position_]->position_ = position_;
  list.pop_back();
  enlisted_ = false;
}

void StoreBuffer::store(uint32_t* address, uint32_t value) {
  const Entry entry{address, value, machine().is_late()};
  const auto [at, is_new] = where_.try_emplace(address, entries_.size());
  if (is_new)
    entries_.push_back(entry);
  else
    entries_[at->second] = entry;
  enlist(machine().background);
}

uint32_t StoreBuffer::load(const uint32_t* address) const {
  for (const StoreBuffer* buffer = this; buffer; buffer = buffer->outer) {
    if (buffer->empty()) continue;
    if (const auto at = buffer->where_.find(address); at != buffer->where_.end())
      return buffer->entries_[at->second].value;
  }
  return *address;
}

void StoreBuffer::remove(std::size_t entry) {
  where_.erase(entries_[entry].address);
  if (entry + 1 != entries_.size()) {
    entries_[entry] = entries_.back();
    where_[entries_[entry].address] = entry;
  }
  entries_.pop_back();
  if (empty()) delist(machine().background);
}

void StoreBuffer::drop(uint32_t* address) {
  if (empty()) return;
  if (const auto at = where_.find(address); at != where_.end()) remove(at->second);
}

void StoreBuffer::commit(std::size_t entry) {
  const auto [address, value, late] = entries_[entry];
  // Stores to one address keep their order: an older one must not come after this one.
  for (StoreBuffer* buffer = outer; buffer; buffer = buffer->outer) buffer->drop(address);
  *address = value;
  remove(entry);
  machine().progressed();
}

void StoreBuffer::commit_chain() {
  if (outer) outer->commit_chain();
  if (empty()) return;
  for (const Entry& entry : entries_) *entry.address = entry.value;
  clear();
  machine().progressed();
}

void StoreBuffer::move_to(StoreBuffer& other) {
  if (empty()) return;
  for (const Entry& entry : entries_) other.store(entry.address, entry.value);
  clear();
}

void StoreBuffer::clear() {
  entries_.clear();
  where_.clear();
  delist(machine().background);
}

void StoreBuffer::advance(Random& random, bool stalled) {
  const auto size = static_cast<unsigned>(entries_.size());
  const unsigned tries = random.one_in(2) ? 1 : 1 + random.below(size);
  for (unsigned i = 0; i < tries && !empty(); ++i) {
    const unsigned entry = random.below(static_cast<unsigned>(entries_.size()));
    if (stalled || !entries_[entry].late) commit(entry);
  }
}

}  // namespace fusedlstm::emulation
