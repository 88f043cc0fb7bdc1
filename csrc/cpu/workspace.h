// Memory for the length of a call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fusedlstm::cpu {

// A fresh page costs the kernel a microsecond or two, more than the work that is done on it; a huge one is
// 512 of them. No more than advice: where the system has no huge pages nothing happens.
inline void prefer_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Uninitialized. A thread keeps its last one, up to a size, for its next call: to fetch pages anew at each
// call took a tenth of the time of one.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t count) : block_(std::exchange(kept(), {})) {
    const size_t bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (block_.bytes >= bytes) return;
    block_ = {};  // before the next, not beside it
    block_ = {std::unique_ptr<void, Free>(std::aligned_alloc(kAlignment, bytes)), bytes};
    if (!block_.memory) throw std::bad_alloc();
    prefer_huge_pages(block_.memory.get(), bytes);
  }
  ~Workspace() {
    if (block_.bytes <= kKeptBytes) kept() = std::move(block_);
  }
  Workspace(const Workspace&) = delete;

  T* data() const { return static_cast<T*>(block_.memory.get()); }

 private:
  static constexpr size_t kAlignment = 64, kKeptBytes = size_t(32) << 20;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct Block {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;
  };
  static Block& kept() {
    static thread_local Block block;
    return block;
  }

  Block block_;
};

}  // namespace fusedlstm::cpu
