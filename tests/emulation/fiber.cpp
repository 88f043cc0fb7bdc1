#include "emulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>

#ifdef FUSEDLSTM_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

namespace fusedlstm::emulation {
namespace {

constexpr std::size_t kGuard = 4096, kStack = 256 * 1024;  // pages that are never touched cost nothing

Fiber* leaving;   // during a switch: from where
Fiber* entering;  // and to where

}  // namespace

#if defined(__x86_64__)

// Swaps the stack pointer around the registers that a call preserves. swapcontext would also save the signal
// mask, a system call at each switch.
extern "C" void fusedlstm_switch_stack(void** save, void* load);
asm(R"(
  .pushsection .text
  .type fusedlstm_switch_stack, @function
  .hidden fusedlstm_switch_stack
  .globl fusedlstm_switch_stack
fusedlstm_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size fusedlstm_switch_stack, .-fusedlstm_switch_stack
  .popsection
)");

#endif

Fiber::Fiber(void (*entry)(Fiber&)) : entry_(entry) {
  mapping_ = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED || mprotect(mapping_, kGuard, PROT_NONE) != 0)
    throw std::runtime_error("fusedlstm emulation: no memory for the stack of a device thread");
  char* bottom = static_cast<char*>(mapping_) + kGuard;
#if defined(__x86_64__)
  // Tops of stacks at the same place of every page would share a few sets of the cache.
  static unsigned made = 0;
  const std::size_t stagger = made++ % 32 * 128;
  void** top = reinterpret_cast<void**>(bottom + kStack - stagger);
  *--top = nullptr;  // the address that `begin` would return to
  *--top = reinterpret_cast<void*>(&Fiber::begin);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom;
  context_.uc_stack.ss_size = kStack;
  makecontext(&context_, &Fiber::begin, 0);
#endif
#ifdef FUSEDLSTM_ADDRESS_SANITIZER
  bottom_ = bottom;
  size_ = kStack;
#endif
}

Fiber::~Fiber() {
  if (mapping_) munmap(mapping_, kGuard + kStack);
}

void Fiber::begin() {
  Fiber& self = *entering;
#ifdef FUSEDLSTM_ADDRESS_SANITIZER
  self.arrive();
#endif
  self.entry_(self);
}

void Fiber::switch_to(Fiber& next) {
  leaving = this;
  entering = &next;
#ifdef FUSEDLSTM_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&fake_stack_, next.bottom_, next.size_);
#endif
#if defined(__x86_64__)
  fusedlstm_switch_stack(&stack_pointer_, next.stack_pointer_);
#else
  swapcontext(&context_, &next.context_);
#endif
#ifdef FUSEDLSTM_ADDRESS_SANITIZER
  arrive();
#endif
}

#ifdef FUSEDLSTM_ADDRESS_SANITIZER
// The sanitizer tells the bounds of the stack that was left; so those of launch()'s caller become known.
void Fiber::arrive() {
  __sanitizer_finish_switch_fiber(fake_stack_, &leaving->bottom_, &leaving->size_);
}
#endif

}  // namespace fusedlstm::emulation
