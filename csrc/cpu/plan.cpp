#include "plan.h"

#include <algorithm>

namespace fusedlstm::cpu {
namespace {

// Below so many multiply-adds in a call, one thread is faster than starting the team.
constexpr int64_t kTeamWork = 300'000;
// Below so many in a step, one thread computes all units faster than several that meet at a barrier.
constexpr int64_t kStepWork = 1 << 15;
// With this many rows for each row thread the batch is divided before the units are: 8 if all weights fit the
// core's own cache, else as many as share a panel in the L1 cache (kMC).
constexpr int64_t kRowsOfCachedWeights = 8;
// Packing pays off in a forward pass if the call uses each weight this often.
constexpr int64_t kPackedUses = 48;
// Rows (steps x batch) of a backward time block, over which the weight gradients sum. A forward block has kMC
// rows for a row thread, so that its gates stay in the L2 cache.
constexpr int64_t kBackwardRows = 256;

}  // namespace

int64_t multiply_adds(const Sizes& s) {
  const int64_t projection = s.outputs == s.hidden ? 0 : s.outputs * s.hidden;
  return s.entries * s.directions * (4 * s.hidden * (s.input + s.outputs) + projection);
}

ThreadPlan make_thread_plan(const Sizes& s, int64_t threads, Pass pass, int64_t cached_weight_bytes,
                            PackedFrom packed_from) {
  const int64_t cached_weights = cached_weight_bytes / int64_t(sizeof(float));
  // s.entries: how often a pass uses each weight.
  const bool packs = pass == Pass::backward
                         ? s.entries >= packed_from.entries
                         : s.steps > 1 && s.batch >= packed_from.rows && s.entries >= kPackedUses;
  ThreadPlan plan{.groups = 1, .unit_threads = 1, .row_threads = 1, .time_block = 1, .packs = packs};
  const int64_t gates = 4 * s.hidden;
  if (multiply_adds(s) < kTeamWork) threads = 1;
  // Directions run at the same time in the forward pass. In the backward pass both add to grad_x.
  if (pass == Pass::forward && s.directions > 1 && threads % s.directions == 0) {
    plan.groups = s.directions;
    threads /= s.directions;
  }
  // As many row threads as have enough rows each and divide the threads evenly.
  const int64_t own_rows = gates * s.outputs <= cached_weights ? kRowsOfCachedWeights : kMC;
  plan.row_threads = threads;
  while (plan.row_threads > 1 && (threads % plan.row_threads != 0 || s.batch < own_rows * plan.row_threads))
    --plan.row_threads;
  plan.unit_threads = gates * s.outputs * s.batch < kStepWork ? 1 : threads / plan.row_threads;
  // A step also multiplies x with W_ih if a unit thread keeps its part of both weights cached. Otherwise W_ih
  // is read once for a time block.
  const bool input_in_step = packs && gates * (s.input + s.outputs) <= cached_weights * plan.unit_threads;
  const int64_t rows = pass == Pass::backward ? kBackwardRows : input_in_step ? 0 : kMC * plan.row_threads;
  plan.time_block =
      std::clamp<int64_t>(rows / std::max<int64_t>(s.batch, 1), 1, std::max<int64_t>(s.steps, 1));
  return plan;
}

std::vector<Range> divide_steps(const int64_t* offset, int64_t steps, int64_t block_entries, bool falling) {
  std::vector<Range> blocks;
  for (int64_t done = 0; done < steps; done += blocks.back().end - blocks.back().begin) {
    Range block = falling ? Range{steps - done - 1, steps - done} : Range{done, done + 1};
    while (falling ? block.begin > 0 && offset[block.end] - offset[block.begin - 1] <= block_entries
                   : block.end < steps && offset[block.end + 1] - offset[block.begin] <= block_entries)
      falling ? --block.begin : ++block.end;
    blocks.push_back(block);
  }
  return blocks;
}

}  // namespace fusedlstm::cpu
