// Which kernels run one layer on a GPU and how they share its work: pure arithmetic on the problem and on
// the device's limits, so that the choice for any GPU can be printed and tested where there is none.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../cell.h"
#include "traits.h"

namespace fusedlstm::cuda {

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
  // What is not known is taken to be an H100's.
  int64_t l2_bytes = int64_t{50} << 20;
  double memory_gb_s = 3350;  // by bus width and clock
  // The host's time to launch a kernel, in microseconds. 0: a graph will launch it, and only the device's
  // time counts. The plan rounds it to kLaunchUs times a power of two, so that runs on one machine choose
  // alike.
  double launch_us = 5;
};
constexpr double kLaunchUs = 1.25;

// A product and a kernel for each step. Of the kernel that updates all cells of a step.
struct StepwisePlan {
  int units;    // of a thread: as many as fit kAccessBytes, or one
  int threads;  // of a block
  int64_t blocks;
  int registers;  // of a thread, at most: the compile gate holds the kernels to it
  int launches_per_step;
};

// One launch for all steps, with the weights on the chip. The blocks of a group share the units of one
// direction and run its rows of the batch. Groups exchange nothing.
struct PersistentPlan {
  int groups;               // of rows of the batch
  int rows;                 // of a group, a multiple of kRowTile * row_tiles_per_chunk
  int members;              // blocks of a group
  int weight_tiles;         // of a block
  int k_blocks;             // of the state that each warp multiplies
  int register_fragments;   // fragments of weights in registers
  int row_tiles_per_chunk;  // a block multiplies a chunk, and after a barrier updates its cells
  int chunks;               // of a group
  int octets;               // of units of a block
  int quads;                // of tiles of cells in a chunk
  Signal signal;
  Pass pass;

  constexpr int64_t blocks(int64_t directions) const { return directions * groups * members; }
};

// Dynamic shared memory of a block of a persistent kernel: the elements of its parts, in their order. The
// plan counts in 64 bits, for batches that do not fit, the kernels in 32.
template <class Int>
struct SharedLayout {
  // float [buffer][row tile of a chunk][weight tile][half of its 16 rows][kPartialFloats]
  static FUSEDLSTM_HOST_DEVICE constexpr Int partials(const PersistentPlan& plan) {
    return Int{2} * plan.row_tiles_per_chunk * plan.weight_tiles * kPartialFloats;
  }
  // float [chunk][quad][thread]: c_t, backward its gradient
  static FUSEDLSTM_HOST_DEVICE constexpr Int cell_states(const PersistentPlan& plan) {
    return Int{plan.chunks} * plan.quads * kThreads;
  }
  // {int, float} [tile of cells][lane], forward only
  static constexpr int kGateInputs = 2 * kMaxTiles * kLanes;
  // uint4 [fragment beyond the registers][warp][row g, row g + 8][lane]
  static constexpr Int weights(Int fragments) { return fragments > 0 ? fragments * 2 * kThreads : 0; }

  static constexpr Int bytes(const PersistentPlan& plan) {
    return 4 * (partial_buffers(plan.signal) * partials(plan) + cell_states(plan) +
                (plan.pass == Pass::forward ? kGateInputs : 0)) +
           16 * weights(plan.weight_tiles * plan.k_blocks - plan.register_fragments);
  }
};
constexpr int64_t shared_bytes(const PersistentPlan& plan) {
  return SharedLayout<int64_t>::bytes(plan);
}

struct KernelPlan {
  StepwisePlan stepwise;  // used without a persistent plan, and where the device does not take the launch
  std::optional<PersistentPlan> persistent;
  // Predicted time of a step by each strategy; persistent_us is 0 where no persistent kernel fits.
  double stepwise_us, persistent_us;
  std::string reason;
};

// Which part of the layer each block of a persistent launch takes.
struct Division {
  int groups, weight_tiles, row_tiles_per_chunk;  // as in PersistentPlan
};

// StrategyChoice::fastest leaves the choice to the model; the others force a strategy, a persistent one where
// it fits.
enum class StrategyChoice { fastest, stepwise, persistent, persistent_flags };
constexpr const char* kStrategyNames = "fastest, stepwise, persistent or persistent_flags";
// Nothing for a name that is none of kStrategyNames.
std::optional<StrategyChoice> strategy_named(const std::string& name);

// With a `division` a persistent launch divides the layer so, unless `choice` is stepwise. Throws
// std::invalid_argument for a problem that no kernel can take, and for a division that does not fit.
KernelPlan make_plan(const Problem& problem, const Limits& limits,
                     StrategyChoice choice = StrategyChoice::fastest,
                     const std::optional<Division>& division = std::nullopt);

// All persistent plans among which make_plan chooses, with their predicted times of a step, the fastest
// first.
struct PredictedPlan {
  PersistentPlan plan;
  double us;
};
std::vector<PredictedPlan> persistent_plans(const Problem& problem, const Limits& limits, Signal signal);

std::string to_string(const KernelPlan& plan);

}  // namespace fusedlstm::cuda
