// The emulated device as the headers that kernels include see it, and its settings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace fusedlstm::emulation {

// Settings hold for later launches of the process.
// Also restarts the count of launches, from which each gets a schedule of its own.
void set_seed(uint64_t seed);
void set_multiprocessors(unsigned count);
void set_blocks_per_multiprocessor(unsigned count);
// Whether every cooperative launch is refused, as a part of a device may do.
void refuse_cooperative_launches(bool refuse);
bool refuses_cooperative_launches();
uint64_t launches();  // since the seed was set
unsigned multiprocessors();
unsigned blocks_per_multiprocessor();
constexpr std::size_t kSharedMemoryLimit = 227 * 1024;   // bytes a block can get
constexpr std::size_t kSharedMemoryAtFirst = 48 * 1024;  // before set_shared_memory has allowed more

// Of a kernel, for all threads of the process. Less than before is an error: a launch of another thread may
// count on what there was.
void set_shared_memory(const char* name, const void* kernel, std::size_t bytes);

struct Grid {
  const char* name;
  const void* kernel;
  unsigned blocks, threads;
  std::size_t shared_memory;
  bool cooperative;
};

// Runs `thread` once for each thread of the grid and returns when all have ended; the first error is thrown.
void run(const Grid& grid, const std::function<void()>& thread);

// What the running device thread knows of itself.
struct BlockPosition {
  unsigned block = 0, block_size = 0, grid_size = 0;
};
struct Position {
  unsigned thread = 0;
  const BlockPosition* in = nullptr;
};
extern const Position* running;  // null outside kernels
[[noreturn]] void outside_a_kernel();
inline const Position& position() {
  if (!running) outside_a_kernel();
  return *running;
}

void* shared_memory(std::size_t size);
void block_barrier();

// All lanes of the warp meet; the last one calls `perform` with what each of them brought.
using Operands = void* const[32];
void warp_collective(const char* name, void* operands, void (*perform)(Operands&));
void warp_barrier();
float round_to_tf32(float value);
enum class Operand { kHalf, kBFloat16, kTf32 };
void mma(const char* name, Operand type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

void load(const uint32_t* address, uint32_t* values, int words);
void store(uint32_t* address, const uint32_t* values, int words);
void store_release(uint32_t* address, uint32_t value);
void fence();

void copy_async(void* shared, const void* global);
void copy_async_commit();
void copy_async_wait(unsigned pending_groups);

}  // namespace fusedlstm::emulation
