// Stacks to run device threads on, and the switch between them.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define FUSEDLSTM_ADDRESS_SANITIZER 1
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace fusedlstm::emulation {

class Fiber {
 public:
  Fiber() = default;                      // stands for the stack it is first switched away from
  explicit Fiber(void (*entry)(Fiber&));  // a stack of its own with a guard page; `entry` never returns
  ~Fiber();
  Fiber(const Fiber&) = delete;

  // Continues `next` where it switched away; returns when something switches back to this fiber.
  void switch_to(Fiber& next);

 private:
  static void begin();

  void (*entry_)(Fiber&) = nullptr;
  void* mapping_ = nullptr;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
#ifdef FUSEDLSTM_ADDRESS_SANITIZER
  void arrive();

  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
#endif
};

}  // namespace fusedlstm::emulation
