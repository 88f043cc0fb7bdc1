// Memory for the length of a call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fusedlstm::cpu {

template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t count) {
    const size_t bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    // A fresh page costs a microsecond or two, more than the work done on it; a huge one is 512 of them.
    const bool huge = bytes >= 2 * kHugePage;
    memory_.reset(static_cast<T*>(std::aligned_alloc(
        huge ? kHugePage : kAlignment, huge ? (bytes + kHugePage - 1) / kHugePage * kHugePage : bytes)));
    if (!memory_ && bytes > 0) throw std::bad_alloc();
#if defined(__linux__)
    if (huge) madvise(memory_.get(), bytes, MADV_HUGEPAGE);
#endif
  }

  T* data() const { return memory_.get(); }

 private:
  static constexpr size_t kAlignment = 64, kHugePage = size_t(2) << 20;
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

}  // namespace fusedlstm::cpu
