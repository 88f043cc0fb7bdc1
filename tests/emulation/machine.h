// The parts of the emulated device. Everything runs on one host thread at a time: a launch holds a lock.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulation/copies.h"
#include "emulation/emulator.h"
#include "emulation/fiber.h"
#include "emulation/random.h"
#include "emulation/stores.h"

namespace fusedlstm::emulation {

struct Block;

struct alignas(64) Thread : Position {
  Block* owner = nullptr;
  Fiber* fiber = nullptr;          // null before it starts and after it ends
  const char* waits_in = nullptr;  // the barrier or collective it waits in
  const void* polled = nullptr;    // what it loaded last
  StoreBuffer stores;
  bool fenced = false;  // nothing in sight of a fence may follow the next store
  CopyQueue copies;
};

struct Warp {
  unsigned exited = 0, arrived = 0;
  const char* collective = nullptr;  // what its lanes are arriving at
  void (*perform)(Operands&) = nullptr;
  void* operands[32];
  StoreBuffer stores;
};

struct Block : BlockPosition {
  explicit Block(unsigned size);
  void share_stores();  // what threads and warps hold becomes visible in the whole block
  Warp& warp_of(const Thread& thread) { return warps[thread.thread / 32]; }
  bool runnable() const { return !ready.empty() || unstarted.left(); }

  std::vector<Thread> threads;
  std::vector<Warp> warps;
  RandomOrder unstarted;
  std::vector<Thread*> ready, at_barrier;
  unsigned exited = 0;
  StoreBuffer stores;
  std::unique_ptr<unsigned char[]> shared;
};

// An error found by the emulator, with its place and the seed in the message.
struct Error : std::runtime_error {
  using runtime_error::runtime_error;
};

// Unwinds the other threads of the grid after an error.
struct Cancelled {};

// The character of a launch's schedule: launches differ in how often things happen, not only in which.
struct Schedule {
  explicit Schedule(Random& random);

  unsigned longest_burst;  // turns that one block gets before another one may run
  unsigned background, load,
      elsewhere;       // at one in so many pauses effects become visible, another thread runs
  unsigned late;       // one in so many effects comes as late as it may
  unsigned slow_warp;  // of each block, rarely runs while others can; none if a block has not so many
};

class Machine {
 public:
  Machine();

  void run(const Grid& grid, const std::function<void()>& thread);

  Thread& current() { return static_cast<Thread&>(const_cast<Position&>(position())); }
  const Grid& grid() const { return *grid_; }
  [[noreturn]] void fail(const std::string& what);  // an error of the current thread

  // How much a load counts towards a standstill when the thread has loaded the same just before; else 1.
  static constexpr unsigned kRepeatedLoad = 16;

  enum class At { kLoad, kElsewhere };
  void pause(At at);  // a point at which other threads and the background may go first
  void suspend();     // until another thread makes the current one ready
  void make_ready(Thread& thread) { thread.owner->ready.push_back(&thread); }
  void progressed() { idle_ = 0; }
  void polls(const void* address);
  bool is_lazy() { return random_.one_in(2); }               // whether a fence commits at the next store only
  bool tears() { return random_.one_in(8); }                 // whether a 16-byte access does so here
  bool is_late() { return random_.one_in(schedule_.late); }  // whether an effect that begins now is

  Background::List background;

  uint64_t seed, launches = 0;
  unsigned multiprocessors, blocks_per_multiprocessor;
  bool refuses_cooperative_launches = false;
  std::map<const void*, std::size_t> shared_memory;  // bytes that each kernel may have

 private:
  // machine.cpp: launches, blocks and threads begin and end.
  void check(const Grid& grid) const;
  void admit(Block& block);
  void retire(Block& block);
  void start(Thread& thread, Fiber& fiber);
  void exit(Thread& thread);
  std::string describe(const Thread& thread, const std::string& what) const;

  // scheduler.cpp: who runs.
  static void work(Fiber& self);
  Fiber& idle_worker();
  Thread* next();
  void choose_block();
  Thread* any_suspended();
  std::string describe_deadlock();

  const Grid* grid_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr failure_;

  std::vector<std::unique_ptr<Block>> blocks_;  // as many as are resident, kept for the next launch
  std::vector<Block*> resident_;
  RandomOrder waiting_blocks_;
  StoreBuffer retired_;  // stores of blocks that have ended

  Random random_{0};
  Schedule schedule_{random_};
  std::vector<std::unique_ptr<Fiber>> workers_;
  std::vector<Fiber*> idle_workers_;
  Fiber root_;                  // the caller of launch()
  Thread* assigned_ = nullptr;  // what the worker that is switched to starts with
  Block* focus_ = nullptr;      // the block whose threads run in this burst
  Block* slow_ = nullptr;       // one that rarely gets a burst, so that blocks drift apart
  unsigned burst_ = 0;
  uint64_t idle_ = 0, idle_limit_ = 0;  // loads since anything else happened
  bool stalled() const {
    return idle_ > 256 * kRepeatedLoad;
  }  // time for what is late, and for a fair schedule
};

inline Machine& machine() {
  static Machine* const machine = new Machine;  // never destroyed: threads of the host may outlive statics
  return *machine;
}

}  // namespace fusedlstm::emulation
