#include "emulation/machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#ifdef FUSEDLSTM_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

namespace fusedlstm::emulation {
namespace {

uint64_t environment(const char* name, uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value ? std::strtoull(value, nullptr, 0) : otherwise;
}

}  // namespace

Block::Block(unsigned size) : threads(size), warps((size + 31) / 32) {
  block_size = size;
  for (unsigned i = 0; i < size; ++i) {
    Thread& thread = threads[i];
    thread.thread = i;
    thread.in = thread.owner = this;
    thread.stores.outer = &warp_of(thread).stores;
    thread.stores.outer->outer = &stores;
  }
}

void Block::share_stores() {
  for (Warp& warp : warps) warp.stores.move_to(stores);
  for (Thread& thread : threads) thread.stores.move_to(stores);  // last, for they are newer
}

Machine::Machine()
    : seed(environment("FUSEDLSTM_EMULATION_SEED", 1)),
      multiprocessors(static_cast<unsigned>(environment("FUSEDLSTM_EMULATED_SMS", 4))),
      blocks_per_multiprocessor(static_cast<unsigned>(environment("FUSEDLSTM_EMULATED_BLOCKS_PER_SM", 1))) {
#ifdef FUSEDLSTM_ADDRESS_SANITIZER
  __sanitizer_set_death_callback([] {
    if (!running) return;
    const std::string place =
        machine().describe(machine().current(), "AddressSanitizer's report is about it");
    std::fprintf(stderr, "%s\n", place.c_str());
  });
#endif
}

std::string Machine::describe(const Thread& thread, const std::string& what) const {
  return std::string("fusedlstm emulation: kernel ") + grid_->name + ", block " +
         std::to_string(thread.in->block) + ", thread " + std::to_string(thread.thread) + ": " + what +
         " (seed " + std::to_string(seed) + ", launch " + std::to_string(launches) + ")";
}

void Machine::fail(const std::string& what) {
  throw Error(describe(current(), what));
}

void Machine::check(const Grid& grid) const {
  const auto require = [&](bool condition, const std::string& problem) {
    if (!condition) throw Error(std::string("fusedlstm emulation: launch of ") + grid.name + ": " + problem);
  };
  require(grid.blocks > 0, "no blocks");
  require(grid.threads > 0 && grid.threads <= 1024,
          "a block must have 1 to 1024 threads, got " + std::to_string(grid.threads));
  const auto asked = shared_memory.find(grid.kernel);
  const std::size_t allowed = asked == shared_memory.end() ? kSharedMemoryAtFirst : asked->second;
  require(grid.shared_memory <= std::min(allowed, kSharedMemoryLimit),
          "a block can get " + std::to_string(std::min(allowed, kSharedMemoryLimit)) +
              " bytes of shared memory, asked for " + std::to_string(grid.shared_memory));
  const unsigned residency = multiprocessors * blocks_per_multiprocessor;
  require(!grid.cooperative || grid.blocks <= residency,
          "a cooperative grid of " + std::to_string(grid.blocks) + " blocks, but only " +
              std::to_string(residency) + " are resident at once");
}

void Machine::run(const Grid& grid, const std::function<void()>& thread) {
  check(grid);
  ++launches;
  grid_ = &grid;
  body_ = &thread;
  random_ = Random(Random(seed + launches).next());
  schedule_ = Schedule(random_);
  waiting_blocks_ = RandomOrder(grid.blocks, random_);
  const unsigned count = std::min(multiprocessors * blocks_per_multiprocessor, grid.blocks);
  idle_ = 0;
  idle_limit_ = kRepeatedLoad * (50'000 + 500 * uint64_t{count} * grid.threads);
  if (!blocks_.empty() && blocks_[0]->block_size != grid.threads) blocks_.clear();
  while (blocks_.size() < count) blocks_.push_back(std::make_unique<Block>(grid.threads));
  for (unsigned i = 0; i < count; ++i) {
    resident_.push_back(blocks_[i].get());
    admit(*blocks_[i]);
  }

  root_.switch_to(idle_worker());

  retired_.commit_chain();
  running = nullptr;
  focus_ = slow_ = nullptr;
  burst_ = 0;
  if (failure_) {
    background.clear();
    resident_.clear();
    blocks_.clear();
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
}

void Machine::admit(Block& block) {
  block.block = waiting_blocks_.next();
  block.grid_size = grid_->blocks;
  block.exited = 0;
  block.unstarted = RandomOrder(block.block_size, random_);
  for (Warp& warp : block.warps) warp.exited = 0;
  if (const std::size_t bytes = grid_->shared_memory) {
    block.shared.reset(new unsigned char[bytes]);  // of its own, so that AddressSanitizer knows its end
    std::memset(block.shared.get(), 0xff, bytes);
  }
}

void Machine::retire(Block& block) {
  if (!background.empty()) {
    block.share_stores();
    block.stores.move_to(retired_);
  }
  block.shared.reset();
  if (waiting_blocks_.left()) return admit(block);
  std::erase(resident_, &block);
  if (slow_ == &block) slow_ = nullptr;
  focus_ = nullptr;
}

void Machine::start(Thread& thread, Fiber& fiber) {
  thread.fiber = &fiber;
  thread.polled = nullptr;
  thread.fenced = false;
  running = &thread;
  try {
    (*body_)();
    exit(thread);
  } catch (const Cancelled&) {
  } catch (const Error&) {
    failure_ = std::current_exception();
  } catch (const std::exception& error) {
    failure_ = std::make_exception_ptr(Error(describe(thread, error.what())));
  } catch (...) {
    failure_ = std::make_exception_ptr(Error(describe(thread, "an exception that is no std::exception")));
  }
  thread.fiber = nullptr;
}

void Machine::exit(Thread& thread) {
  Block& block = *thread.owner;
  Warp& warp = block.warp_of(thread);
  if (!background.empty()) thread.copies.finish();
  ++block.exited;
  ++warp.exited;
  progressed();
  if (!block.at_barrier.empty()) fail("it has ended while others of its block wait in a block barrier");
  if (warp.arrived) fail(std::string("it has ended while others of its warp wait in ") + warp.collective);
  if (block.exited == block.block_size) retire(block);
}

}  // namespace fusedlstm::emulation
