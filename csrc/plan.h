// Which kernels run one layer on a GPU and how they share its work: pure arithmetic on the problem and on
// what the device offers, so that the choice for any GPU can be printed and tested where there is none.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "sizes.h"

namespace fusedlstm {

enum class Type { float32, float64, float16, bfloat16 };

// Gates and cell states of 16-bit types are float32.
constexpr int64_t compute_bytes(Type type) {
  return type == Type::float64 ? 8 : 4;
}
constexpr int64_t io_bytes(Type type) {
  return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2;
}

struct Problem {
  int64_t steps, batch, hidden, outputs, directions;  // T, N, H, P (= H without a projection), D
  Type type;
  bool tf32 = false;  // whether products of float32 may be TF32
  Pass pass = Pass::forward;
};

struct Limits {
  int multiprocessors;
  int threads_per_multiprocessor;
  int registers_per_multiprocessor;
  int shared_memory = 0;       // bytes that one block can have
  int compute_capability = 0;  // 10 * major + minor
  double clock_ghz = 1.0;
};

// How the blocks of a persistent launch know that they have been told something.
enum class Signal {
  flag,  // by a flag
  data,  // by the data: it is no longer what stood there before
};
constexpr int slot_count(Signal signal) {
  return signal == Signal::flag ? 2 : 16;
}
// Without flags a thread fences at the end of every so many steps. A slot may serve again 2 kStepsPerFence +
// 2 states later (csrc/README.md); tests/test_protocol.py looks at every order of stores.
constexpr int kStepsPerFence = 4;
static_assert(slot_count(Signal::data) >= 2 * kStepsPerFence + 2);

enum class Strategy {
  stepwise,    // a product and a kernel for each step
  persistent,  // one launch for all steps, with the weights on the chip
};

// Of the kernel that updates all cells of a step.
struct Stepwise {
  int units;    // that one thread updates: as many as fit 16 bytes, or one
  int threads;  // of a block
  int64_t blocks;
  int registers;  // of a thread, at most: the compile gate holds the kernels to it
  int launches_per_step;
};

// Blocks have 8 warps and a multiprocessor each. Those of a group share the units of one direction and run
// its rows of the batch; groups never hear of each other.
constexpr int kPersistentWarps = 8;
// Fragments of weights (16 rows by 64 bytes, 8 registers of a thread) that registers hold beside `pieces` of
// the state; the rest is in shared memory. One more, and some kernel spills on some architecture.
constexpr int register_fragments(Pass pass, int pieces) {
  if (pass == Pass::forward) return pieces > 6 ? 11 : pieces > 4 ? 10 : pieces > 2 ? 11 : 14;
  return pieces > 8 ? 7 : pieces > 4 ? 10 : 11;
}

struct Persistent {
  int groups;   // of rows of the batch
  int rows;     // of a group, a multiple of 8 * chunk
  int members;  // blocks of a group
  int tiles;    // of 16 rows of weights that a block holds: 4 gates of 4 units forward, 16 units backward
  int pieces;   // of 64 bytes of the state that each warp multiplies
  int held;     // fragments of weights in registers
  int chunk;    // tiles of 8 rows of the batch that a block finishes together
  int rounds;   // in which warps do that, an item of work each: forward 1, backward 1 or 2
  Signal signal;

  constexpr int64_t blocks(int64_t directions) const { return directions * groups * members; }
  constexpr bool operator==(const Persistent&) const = default;
};

// Sums of one lane that wait to be added up.
constexpr int64_t partial_count(const Persistent& plan) {
  return int64_t{plan.chunk} * plan.tiles * kPersistentWarps * 32;
}
// Dynamic shared memory: partial sums, cell states (or their gradients), room for gradients of the biases,
// and weights beyond the registers.
constexpr int64_t shared_bytes(const Persistent& plan) {
  const int64_t threads = kPersistentWarps * 32, chunks = plan.rows / 8 / plan.chunk;
  const int64_t spilled = plan.tiles * plan.pieces - plan.held;
  return 16 * partial_count(plan) + plan.rounds * (chunks * 8 + 4 * 4) * threads +
         (spilled > 0 ? spilled * threads * 32 : 0);
}

struct Plan {
  Strategy strategy;
  Stepwise stepwise;  // also what is done where the device turns out not to take the persistent launch
  std::optional<Persistent> persistent;  // for that strategy
  double stepwise_us, persistent_us;  // of a step, by the model; the latter 0 where no persistent kernel fits
  std::string reason;
};

// Throws std::invalid_argument for a problem that no kernel can take. `wanted` may force a strategy; a
// persistent one is taken where it fits.
enum class Wanted { fastest, stepwise, persistent, persistent_flags };
std::optional<Wanted> wanted_named(
    const std::string& name);  // nothing for a name that is none of kWantedNames
constexpr const char* kWantedNames = "fastest, stepwise, persistent or persistent_flags";
Plan make_plan(const Problem& problem, const Limits& limits, Wanted wanted = Wanted::fastest);

std::string to_string(const Plan& plan);

}  // namespace fusedlstm
