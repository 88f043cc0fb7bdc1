#include <algorithm>
#include <cstdio>
#include <utility>

#include "emulation/machine.h"

namespace fusedlstm::emulation {

Schedule::Schedule(Random& random)
    : longest_burst(8u << random.below(8)),
      background(1u << random.below(5)),
      load(1u << random.below(4)),
      elsewhere(2u << random.below(6)),
      late(4u << random.below(4)),
      slow_warp(random.below(16)) {}

// A worker runs threads one after another without a switch, until one has to wait on the worker's stack.
void Machine::work(Fiber& self) {
  Machine& m = machine();
  for (;;) {
    Thread* thread = std::exchange(m.assigned_, nullptr);
    if (!thread) thread = m.next();
    if (thread && !thread->fiber) {
      m.start(*thread, self);
    } else {
      m.idle_workers_.push_back(&self);
      self.switch_to(thread ? *thread->fiber : m.root_);
    }
  }
}

Fiber& Machine::idle_worker() {
  if (idle_workers_.empty()) {
    workers_.push_back(std::make_unique<Fiber>(&Machine::work));
    return *workers_.back();
  }
  Fiber& worker = *idle_workers_.back();
  idle_workers_.pop_back();
  return worker;
}

void Machine::suspend() {
  Thread& self = current();
  Thread* thread = next();
  if (thread != &self) {
    Fiber* to = thread->fiber;
    if (!to) {
      to = &idle_worker();
      assigned_ = thread;
    }
    self.fiber->switch_to(*to);
  }
  running = &self;
  if (failure_) throw Cancelled{};
}

void Machine::pause(At at) {
  if (!background.empty() && random_.one_in(schedule_.background)) {
    Background& some = *background[random_.below(static_cast<unsigned>(background.size()))];
    some.advance(random_, stalled());
  }
  if (random_.one_in(at == At::kLoad ? schedule_.load : schedule_.elsewhere)) {
    make_ready(current());
    suspend();
  }
}

void Machine::polls(const void* address) {
  Thread& thread = current();
  idle_ += thread.polled == address ? kRepeatedLoad : 1;
  thread.polled = address;
  if (idle_ <= idle_limit_) return;
  char text[32];
  std::snprintf(text, sizeof text, "%p", address);
  fail(std::string("it polls ") + text + " and nothing happens in the whole grid any more");
}

// Picks one of the runnable blocks, and now and then another one when that one is slow.
void Machine::choose_block() {
  Block *picked = nullptr, *other = nullptr;
  unsigned count = 0;
  for (Block* block : resident_) {
    if (!block->runnable()) continue;
    if (random_.one_in(++count)) {
      other = picked;
      picked = block;
    } else if (!other) {
      other = block;
    }
  }
  if (picked && random_.one_in(16)) slow_ = picked;
  focus_ = other && picked == slow_ && !stalled() && !random_.one_in(8) ? other : picked;
  burst_ = stalled() ? 1 : 1 + random_.below(schedule_.longest_burst);
}

// Who runs now. One without a fiber is to be started; null when all have ended.
Thread* Machine::next() {
  if (!failure_) {
    if (burst_ == 0 || stalled() || !focus_ || !focus_->runnable()) choose_block();
    if (focus_) {
      --burst_;
      Block& block = *focus_;
      if (block.unstarted.left() && (block.ready.empty() || random_.one_in(2)))
        return &block.threads[block.unstarted.next()];
      const auto any = [&] { return random_.below(static_cast<unsigned>(block.ready.size())); };
      unsigned chosen = any();
      // So that the other warps come to the next barrier before the slow one has left the last.
      for (int tries = stalled() ? 0 : 16;
           tries > 0 && block.ready[chosen]->thread / 32 == schedule_.slow_warp; --tries)
        chosen = any();
      std::swap(block.ready[chosen], block.ready.back());
      Thread* thread = block.ready.back();
      block.ready.pop_back();
      return thread;
    }
    if (resident_.empty()) return nullptr;
    failure_ = std::make_exception_ptr(Error(describe_deadlock()));
  }
  return any_suspended();
}

Thread* Machine::any_suspended() {
  for (Block* block : resident_)
    for (Thread& thread : block->threads)
      if (thread.fiber) return &thread;
  return nullptr;
}

std::string Machine::describe_deadlock() {
  const Thread& thread = *any_suspended();
  std::string what = std::string("it waits in ") + thread.waits_in;
  for (const Block* block : resident_) {
    const auto other = std::find_if(block->threads.begin(), block->threads.end(), [&](const Thread& other) {
      return other.fiber && other.waits_in != thread.waits_in;
    });
    if (other == block->threads.end()) continue;
    what += ", thread " + std::to_string(other->thread) + " of block " + std::to_string(block->block) +
            " in " + other->waits_in;
    break;
  }
  return describe(thread, what + ", and no thread of the grid can go on");
}

}  // namespace fusedlstm::emulation
