#include "plan.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <stdexcept>

namespace fusedlstm {
namespace {

constexpr int64_t ceil_divide(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// What one step of a persistent kernel takes, in cycles of a multiprocessor.
struct PersistentCost {
  double data, flag;  // by which signal the state is exchanged, and all that happens in any step
  double round;       // for each further round in which warps finish their items
  double product;     // of a tile of weights with a tile of rows
  double data_kilobyte, flag_kilobyte;  // of state that a block reads
};

// The model's constants, measured on an H200 whose host starts kernels slowly: rows of
// benchmarks/results/h200/{launches,tiers,calibration}.jsonl. Other GPUs are taken to need as many cycles.
struct Model {
  // Instructions of a thread that do not depend on its units (indices, row lengths), and those of one unit
  // (five exponentials and about forty others): counted in the SASS of stepwise_forward.cu for sm_90.
  int64_t instructions_per_thread = 40, instructions_per_unit = 50;

  // Time of the host for a call of cuBLAS (backward it often adds up parts in a kernel of its own) and for a
  // kernel: 9.3 to 17 and 4.9 us (launches.jsonl); most whole steps took 20 to 29 us (tiers.jsonl).
  double product_host_us = 15, product_backward_host_us = 22, kernel_host_us = 4.9;
  // A product of one step, and the kernel of its cells, start and end in so much (calibration.jsonl,
  // "kernels": cuDNN's take 2.3 and 1.9 us at N 64, H 160); from one kernel to the next on the device
  // ("launch", in a graph).
  double product_us = 2.5, cells_us = 1.9, gap_us = 0.55;
  double weight_bytes_per_us = 4.0e6;  // of a product whose weights come from the L2 cache
  double cell_bytes_per_us = 3.0e6;
  double product_flops_share = 0.5;  // of the tensor cores' rate in such products

  // Fitted by nonnegative least squares to the durations of 80 forward and 78 backward launches
  // (tiers.jsonl): 5 and 6% off on average, 19 and 26% at most.
  PersistentCost forward{3450, 4860, 4920, 200, 71, 33}, backward{3890, 4370, 2710, 1180, 64, 25};
  // The weights' way onto the chip, and the kernels that prepare it.
  double launch_persistent_us = 20;
};
constexpr Model kModel;

// Operations of the tensor cores a cycle and multiprocessor, 16-bit types with float32 sums, dense, as
// mma.sync reaches them: the datasheets' rates, and of that 62% on 9.0 (section "mma" of calibration.jsonl:
// 645 TFLOP/s), which later chips are taken to have too.
double tensor_flops(int compute_capability) {
  if (compute_capability >= 120) return 1024;
  if (compute_capability >= 90) return 0.62 * 4096;
  if (compute_capability >= 86) return 512;
  return 2048;
}

double flops_per_cycle(const Problem& problem, const Limits& limits) {
  const double rate = tensor_flops(limits.compute_capability);
  if (io_bytes(problem.type) == 2) return rate;
  return problem.type == Type::float32 && problem.tf32 ? rate / 2 : 256;
}

// stepwise_*.cu are compiled for at most this many, which lets 1024 threads run on a multiprocessor.
constexpr int kStepwiseRegisters = 64;

// What the busiest multiprocessor has to issue in one step.
int64_t cost(const Stepwise& plan, const Limits& limits) {
  const int64_t per_thread = kModel.instructions_per_thread + kModel.instructions_per_unit * plan.units;
  return ceil_divide(plan.blocks, limits.multiprocessors) * plan.threads * per_thread;
}

Stepwise plan_stepwise(const Problem& problem, const Limits& limits) {
  const int64_t cells = problem.directions * problem.batch * problem.hidden;
  const int widest = static_cast<int>(16 / compute_bytes(problem.type));
  const bool projected = problem.outputs != problem.hidden;
  Stepwise best{};
  for (const int units : {widest, 1}) {
    if (problem.hidden % units) continue;
    for (const int threads : {256, 128, 64}) {
      const Stepwise plan{.units = units,
                          .threads = threads,
                          .blocks = ceil_divide(cells / units, threads),
                          .registers = kStepwiseRegisters,
                          .launches_per_step = projected ? 3 : 2};
      if (threads > limits.threads_per_multiprocessor ||
          threads * plan.registers > limits.registers_per_multiprocessor)
        continue;
      // Wide accesses and large blocks come first, so that others win only where they spread the work better.
      if (best.threads == 0 || cost(plan, limits) < cost(best, limits)) best = plan;
    }
  }
  if (best.threads == 0) throw std::invalid_argument("plan: the device takes no block of 64 threads");
  return best;
}

// Bytes that a cell of a step moves from and to memory.
double cell_bytes(const Problem& problem) {
  const int64_t io = io_bytes(problem.type), compute = compute_bytes(problem.type);
  return static_cast<double>(problem.pass == Pass::forward ? 9 * compute + io : 7 * compute + 5 * io);
}

double stepwise_us(const Problem& problem, const Stepwise& plan, const Limits& limits) {
  const double cells = static_cast<double>(problem.directions * problem.batch * problem.hidden);
  const double weights = 4.0 * problem.directions * problem.hidden * problem.outputs * io_bytes(problem.type);
  const double flops = 8.0 * cells * problem.outputs;
  const double rate = kModel.product_flops_share * flops_per_cycle(problem, limits) * limits.multiprocessors *
                      limits.clock_ghz * 1e3;
  const double product = kModel.product_us + std::max(weights / kModel.weight_bytes_per_us, flops / rate);
  const double update = kModel.cells_us + cells * cell_bytes(problem) / kModel.cell_bytes_per_us;
  const int products = plan.launches_per_step - 1;
  const double of_host =
      problem.pass == Pass::forward ? kModel.product_host_us : kModel.product_backward_host_us;
  return std::max(products * of_host + kModel.kernel_host_us,
                  products * product + update + plan.launches_per_step * kModel.gap_us);
}

double persistent_us(const Problem& problem, const Persistent& plan, const Limits& limits) {
  const bool forward = problem.pass == Pass::forward, flag = plan.signal == Signal::flag;
  const PersistentCost& cost = forward ? kModel.forward : kModel.backward;
  const double kilobytes = static_cast<double>(plan.rows) * plan.pieces * 64 * kPersistentWarps / 1000;
  const int row_tiles = plan.rows / 8, chunks = row_tiles / plan.chunk;
  const int rounds = chunks * plan.rounds;
  const double cycles = (flag ? cost.flag : cost.data) + cost.round * (rounds - 1) +
                        cost.product * row_tiles * plan.tiles +
                        (flag ? cost.flag_kilobyte : cost.data_kilobyte) * kilobytes;
  return cycles / (limits.clock_ghz * 1e3) + kModel.launch_persistent_us / static_cast<double>(problem.steps);
}

// What persistent_*.cu are compiled for.
constexpr std::array kForwardPieces{1, 2, 3, 4, 6, 8};
constexpr std::array kBackwardPieces{1, 2, 4, 8, 12, 16, 24, 32};

// The fastest of the persistent plans that fit, by the model.
std::optional<Persistent> plan_persistent(const Problem& problem, const Limits& limits, Signal signal) {
  std::optional<Persistent> best;
  const bool has_kernels = problem.outputs == problem.hidden && limits.compute_capability >= 80 &&
                           (io_bytes(problem.type) == 2 || (problem.type == Type::float32 && problem.tf32));
  // A block's flags count chunks of steps in 32 bits.
  if (!has_kernels || problem.steps * ceil_divide(problem.batch, 8) >= int64_t{1} << 31) return best;
  const bool forward = problem.pass == Pass::forward;
  const int64_t terms = 64 / io_bytes(problem.type) * kPersistentWarps;  // that a piece of each warp covers
  const int64_t needed = ceil_divide(forward ? problem.hidden : ceil_divide(problem.hidden, 8) * 32, terms);
  int pieces = 0;  // the fewest that suffice, in lists that rise
  const auto choose = [&](const auto& compiled) {
    const auto found = std::find_if(compiled.begin(), compiled.end(), [&](int n) { return n >= needed; });
    if (found != compiled.end()) pieces = *found;
  };
  forward ? choose(kForwardPieces) : choose(kBackwardPieces);
  if (pieces == 0) return best;

  for (int share = 1; share <= 8;
       ++share) {  // blocks of 8 units, or tiles of 16: an item of work for each warp
    const int64_t members = ceil_divide(problem.hidden, share * (forward ? 8 : 16));
    const int64_t room = limits.multiprocessors / (problem.directions * members);
    const int64_t row_tiles = ceil_divide(problem.batch, 8);
    for (int64_t groups = 1; groups <= std::min(room, row_tiles); ++groups) {
      const int64_t least = ceil_divide(row_tiles, groups);
      for (int64_t chunk = std::min<int64_t>(least, kPersistentWarps / share); chunk > 0; chunk /= 2) {
        const int64_t tiles = ceil_divide(least, chunk) * chunk;
        if (ceil_divide(row_tiles, tiles) != groups) continue;  // fewer groups do
        const Persistent plan{.groups = static_cast<int>(groups),
                              .rows = static_cast<int>(tiles * 8),
                              .members = static_cast<int>(members),
                              .tiles = forward ? 2 * share : share,
                              .pieces = pieces,
                              .held = register_fragments(problem.pass, pieces),
                              .chunk = static_cast<int>(chunk),
                              .rounds = forward || 2 * share * chunk <= kPersistentWarps ? 1 : 2,
                              .signal = signal};
        if (shared_bytes(plan) > limits.shared_memory) continue;
        if (!best || persistent_us(problem, plan, limits) < persistent_us(problem, *best, limits))
          best = plan;
      }
    }
  }
  return best;
}

std::string format(const char* pattern, auto... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

}  // namespace

Plan make_plan(const Problem& problem, const Limits& limits, Wanted wanted) {
  // Indices inside one step are 32-bit; the largest is that of a gate.
  constexpr int64_t kMaxGates = (int64_t{1} << 31) - 1;
  const int64_t gates = 4 * problem.directions * problem.batch * problem.hidden;
  if (gates > kMaxGates)
    throw std::invalid_argument("plan: directions * batch * 4 * hidden_size must be below 2^31, got " +
                                std::to_string(gates) + "; split the batch");
  if (problem.steps > kMaxGates)
    throw std::invalid_argument("plan: steps must be below 2^31, got " + std::to_string(problem.steps) +
                                "; split the sequence");
  const Stepwise stepwise = plan_stepwise(problem, limits);
  Plan plan{.strategy = Strategy::stepwise,
            .stepwise = stepwise,
            .persistent = std::nullopt,
            .stepwise_us = stepwise_us(problem, stepwise, limits),
            .persistent_us = 0,
            .reason = "asked for"};
  if (wanted == Wanted::stepwise) return plan;
  std::optional<Persistent> persistent =
      plan_persistent(problem, limits, wanted == Wanted::persistent_flags ? Signal::flag : Signal::data);
  if (persistent && wanted == Wanted::fastest) {
    const std::optional<Persistent> flags = plan_persistent(problem, limits, Signal::flag);
    if (persistent_us(problem, *flags, limits) < persistent_us(problem, *persistent, limits))
      persistent = flags;
  }
  if (!persistent) {
    plan.reason = "no persistent kernel takes this layer on this device";
    return plan;
  }
  plan.persistent_us = persistent_us(problem, *persistent, limits);
  if (wanted == Wanted::fastest) plan.reason = "predicted to be faster";
  if (wanted == Wanted::fastest && plan.persistent_us >= plan.stepwise_us) return plan;
  plan.strategy = Strategy::persistent;
  plan.persistent = persistent;
  return plan;
}

std::optional<Wanted> wanted_named(const std::string& name) {
  if (name == "fastest") return Wanted::fastest;
  if (name == "stepwise") return Wanted::stepwise;
  if (name == "persistent") return Wanted::persistent;
  if (name == "persistent_flags") return Wanted::persistent_flags;
  return std::nullopt;
}

std::string to_string(const Plan& plan) {
  std::string text = "Plan(";
  if (plan.strategy == Strategy::persistent) {
    const Persistent& p = *plan.persistent;
    text += format(
        "strategy=persistent, groups=%d, rows=%d, members=%d, tiles=%d, pieces=%d, chunk=%d, signal=%s, "
        "shared_bytes=%lld",
        p.groups, p.rows, p.members, p.tiles, p.pieces, p.chunk, p.signal == Signal::flag ? "flag" : "data",
        static_cast<long long>(shared_bytes(p)));
  } else {
    const Stepwise& s = plan.stepwise;
    text += format("strategy=stepwise, units=%d, threads=%d, blocks=%lld, registers=%d, launches_per_step=%d",
                   s.units, s.threads, static_cast<long long>(s.blocks), s.registers, s.launches_per_step);
  }
  text += format(", stepwise_us=%.2f", plan.stepwise_us);
  if (plan.persistent_us > 0) text += format(", persistent_us=%.2f", plan.persistent_us);
  return text + ", reason=\"" + plan.reason + "\")";
}

}  // namespace fusedlstm
