#include "plan.h"

#include <stdexcept>

namespace fusedlstm {
namespace {

constexpr int64_t ceil_divide(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Instructions of a thread that do not depend on its units (indices, row lengths), and those of one unit
// (five exponentials and about forty others): counted in the SASS of stepwise_forward.cu for sm_90.
constexpr int64_t kInstructionsPerThread = 40, kInstructionsPerUnit = 50;

// stepwise_*.cu are compiled for at most this many, which lets 1024 threads run on a multiprocessor.
constexpr int kStepwiseRegisters = 64;

// What the busiest multiprocessor has to issue in one step.
int64_t cost(const Plan& plan, const Limits& limits) {
  const int64_t per_thread = kInstructionsPerThread + kInstructionsPerUnit * plan.units;
  return ceil_divide(plan.blocks, limits.multiprocessors) * plan.threads * per_thread;
}

Plan stepwise(const Problem& problem, const Limits& limits) {
  const int64_t cells = problem.directions * problem.batch * problem.hidden;
  const int widest = static_cast<int>(16 / compute_bytes(problem.type));
  const bool projected = problem.outputs != problem.hidden;
  Plan best{};
  for (const int units : {widest, 1}) {
    if (problem.hidden % units) continue;
    for (const int threads : {256, 128, 64}) {
      const Plan plan{.strategy = Strategy::stepwise,
                      .units = units,
                      .threads = threads,
                      .blocks = ceil_divide(cells / units, threads),
                      .registers = kStepwiseRegisters,
                      .launches_per_step = projected ? 3 : 2,
                      .reason = {}};
      if (threads > limits.threads_per_multiprocessor ||
          threads * plan.registers > limits.registers_per_multiprocessor)
        continue;
      // Wide accesses and large blocks come first, so that others win only where they spread the work better.
      if (best.threads == 0 || cost(plan, limits) < cost(best, limits)) best = plan;
    }
  }
  if (best.threads == 0) throw std::invalid_argument("plan: the device takes no block of 64 threads");
  best.reason = std::to_string(cells) + " cells a step over " + std::to_string(limits.multiprocessors) +
                " multiprocessors";
  return best;
}

}  // namespace

Plan make_plan(const Problem& problem, const Limits& limits) {
  // Indices inside one step are 32-bit; the largest is that of a gate.
  constexpr int64_t kMaxGates = (int64_t{1} << 31) - 1;
  const int64_t gates = 4 * problem.directions * problem.batch * problem.hidden;
  if (gates > kMaxGates)
    throw std::invalid_argument("plan: directions * batch * 4 * hidden_size must be below 2^31, got " +
                                std::to_string(gates) + "; split the batch");
  return stepwise(problem, limits);
}

std::string to_string(const Plan& plan) {
  return "Plan(strategy=stepwise, units=" + std::to_string(plan.units) +
         ", threads=" + std::to_string(plan.threads) + ", blocks=" + std::to_string(plan.blocks) +
         ", registers=" + std::to_string(plan.registers) +
         ", launches_per_step=" + std::to_string(plan.launches_per_step) + ", reason=\"" + plan.reason +
         "\")";
}

}  // namespace fusedlstm
