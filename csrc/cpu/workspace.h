// Memory for the length of a call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../allocate.h"

namespace fusedlstm::cpu {

// Linux takes a microsecond or two to supply a page of 4 KiB, longer than the work done on it. A huge page
// replaces 512 of them. This is advice only: without huge pages in the system it has no effect.
inline void prefer_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

[[noreturn]] inline void fail_to_allocate(size_t bytes) {
  fusedlstm::fail_to_allocate(static_cast<int64_t>(bytes), Device(torch::headeronly::DeviceType::CPU));
}

template <class T>
std::vector<T> new_vector(int64_t count, T value = {}) {
  try {
    return std::vector<T>(count, value);
  } catch (const std::exception&) {
    fail_to_allocate(count * sizeof(T));
  }
}

// Uninitialized memory. A thread keeps its last workspace of each type, up to 32 MiB, for its next call: new
// pages in each call took a tenth of its time.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t count) : buffer_(std::exchange(kept(), {})) {
    const size_t bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (buffer_.bytes >= bytes) return;
    buffer_ = {};  // free it before the next is allocated
    buffer_ = {std::unique_ptr<void, Free>(std::aligned_alloc(kAlignment, bytes)), bytes};
    if (!buffer_.memory) fail_to_allocate(bytes);
    prefer_huge_pages(buffer_.memory.get(), bytes);
  }
  ~Workspace() {
    if (buffer_.bytes <= kKeptBytes) kept() = std::move(buffer_);
  }
  Workspace(const Workspace&) = delete;

  T* data() const { return static_cast<T*>(buffer_.memory.get()); }

 private:
  static constexpr size_t kAlignment = 64;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kKeptBytes = 0;  // memory of an earlier call would hide accesses past this one's
#else
  static constexpr size_t kKeptBytes = size_t(32) << 20;
#endif
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    size_t bytes = 0;
  };
  static Buffer& kept() {
    static thread_local Buffer buffer;
    return buffer;
  }

  Buffer buffer_;
};

}  // namespace fusedlstm::cpu
