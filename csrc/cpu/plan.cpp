#include "plan.h"

#include <algorithm>

namespace fusedlstm::cpu {
namespace {

// A call of fewer multiplications takes less than waking a team, and a step of fewer less than waiting for
// it.
constexpr int64_t kCallWork = 300'000, kStepWork = 1 << 15;
// Weights that a core's own cache holds beside other things; most have 512 KiB to 2 MiB.
constexpr int64_t kCachedWeights = 100'000;
// Rows of a thread, from which on it may read all weights rather than a part of them: few where they come
// from its own cache, else as many as use a weight while it is in the L1 cache.
constexpr int64_t kRowsOfCached = 8, kRowsOfOthers = 48;
// Packing pays where several rows use a weight while it is near, and those of all steps use it often enough.
constexpr int64_t kPackedRows = 4, kPackedUses = 48;
// Weights that are read anew in each step at no cost. Of more, the input's serve several steps at a time.
constexpr int64_t kNearWeights = 1 << 18;
// Rows of a product over several steps: as many as use a weight at once, so that the gates stay in the L2
// cache; more for the sums over rows that make the gradients of the weights.
constexpr int64_t kForwardRows = 48, kBackwardRows = 256;

}  // namespace

Plan make_plan(const Problem& p, Pass pass) {
  Plan plan{1, 1, 1, 1, p.steps > 1 && p.batch >= kPackedRows && p.steps * p.batch >= kPackedUses};
  const int64_t gates = 4 * p.hidden, projection = p.outputs == p.hidden ? 0 : p.outputs * p.hidden;
  const int64_t work = p.steps * p.batch * p.directions * (gates * (p.input + p.outputs) + projection);
  int64_t threads = work < kCallWork ? 1 : p.threads;
  // Directions have nothing to say to each other. In backward both add to the gradient of the input.
  if (pass == Pass::forward && p.directions > 1 && threads % p.directions == 0) {
    plan.groups = p.directions;
    threads /= p.directions;
  }
  // Rows that do not divide evenly leave threads idle; the units of all rows are then shared.
  const int64_t own_rows = gates * p.outputs <= kCachedWeights ? kRowsOfCached : kRowsOfOthers;
  plan.rows = threads;
  while (plan.rows > 1 && (threads % plan.rows != 0 || p.batch < own_rows * plan.rows)) --plan.rows;
  plan.columns = gates * p.outputs * p.batch < kStepWork ? 1 : threads / plan.rows;
  const bool near = plan.packs && gates * (p.input + p.outputs) <= kNearWeights * plan.columns;
  const int64_t wanted = pass == Pass::backward ? kBackwardRows : near ? 0 : kForwardRows * plan.rows;
  plan.chunk = std::clamp<int64_t>(wanted / std::max<int64_t>(p.batch, 1), 1, std::max<int64_t>(p.steps, 1));
  return plan;
}

}  // namespace fusedlstm::cpu
