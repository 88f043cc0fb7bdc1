#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>
#include <stdexcept>

namespace fusedlstm::cuda {
namespace {

// What an exchange among the blocks of a group takes, in cycles of a multiprocessor.
struct ExchangeCost {
  double latency, member, kilobyte;  // of each block of the group, of the state that a block reads
  double further_chunk;              // where nothing hides its latency
};

// The model's constants, measured on an H200 whose host takes long to launch a kernel: rows of
// benchmarks/results/h200/{launches,tiers,calibration}.jsonl. Other GPUs are assumed to need as many cycles.
struct Model {
  // Instructions of a thread that do not depend on its units (indices, row lengths), and those of one unit
  // (five exponentials and about forty others), counted in the SASS of stepwise_forward.cu for sm_90.
  int64_t instructions_per_thread = 40, instructions_per_unit = 50;

  // The host's time to start a cuBLAS product, in launches of a kernel: 11.4 to 17 us where one takes 4.9 us
  // (launches.jsonl). Backward, cuBLAS often needs a second kernel, which adds up partial sums. Most steps
  // took 20 to 29 us in all on that host (tiers.jsonl).
  double product_launches = 3.1, product_backward_launches = 4.5;
  // The shortest time of a step's product and of its kernel on the device (calibration.jsonl, "kernels":
  // cuDNN's take 2.3 and 1.9 us at N 64, H 160), backward that of the second kernel, and the gap between two
  // kernels ("launch", in a graph).
  double product_us = 2.5, partial_sums_us = 1.8, cells_us = 1.9, gap_us = 0.55;
  // Of the tensor cores' rate in products of many rows: forward 14.7 and 29.7 us in bfloat16 and TF32 at N
  // 256, H 2048 (launches.jsonl), where 13.6 and 27 us are the operations'. Backward the sums are four times
  // as long and their tiles a quarter as many: by the 34 us of a step of that size (rows.csv).
  double product_share = 0.95, product_backward_share = 0.6;
  // A product reads the weights from the L2 cache, of which about half holds what the step before has read
  // too, else from memory. A multiprocessor reads 15.3 bytes a cycle: 2.1 us for 8.4 MB (calibration.jsonl,
  // "gemm", in a graph: 4.26 us at N 64, H 1024, bfloat16). The shares are of the memory's rate.
  double l2_bytes_per_cycle = 15.3, l2_share = 0.55, weights_share = 0.88, cells_share = 0.62;

  // The persistent kernels, predicted and not measured: launches of today's kernels are not on record. The
  // exchange is (calibration.jsonl, on an H200 at 1.98 GHz): among 8 to 128 blocks 0.43 to 0.65 us by data
  // ("lamport") and 1.03 to 1.34 by flags ("flags"), and reading 10.5 and 4.5 us a megabyte more, never
  // faster than 52 bytes a cycle ("broadcast"). A further chunk by flags exposes a release, an acquire and a
  // load; by data the cells of the chunk before hide half of the load.
  ExchangeCost data{850, 3.4, 20.8, 500}, flag{2040, 4.75, 8.9, 1400};
  double read_bytes_per_cycle = 52;
  // Beside it: loop, addresses, barriers. A load that the products before it do not hide.
  double step = 300, exposed_load = 700;
  // The cells of a chunk's first tile and of each further one, by the instructions in SASS.
  double cells_forward = 356, tile_forward = 89, cells_backward = 475, tile_backward = 119;
  // The share of the products that nothing hides, of the tensor cores' time, of the time to read fragments
  // of weights from shared memory (128 bytes a cycle), and to write and read partial sums.
  double product_exposed = 0.3, fragment_exposed = 0.7, partial_exposed = 0.6, shared_bytes_per_cycle = 128;
  // A model like this one was 1.1 to 2.2 times below what the kernels before took.
  double margin = 1.3;
  // Loading the weights onto the chip, and the kernels before the launch.
  double launch_persistent_us = 20;
};
constexpr Model kModel;

// Operations per cycle and multiprocessor of the tensor cores, 16-bit types with float32 sums, dense, that
// mma.sync reaches: the datasheets' rates, and 62% of them on 9.0 (section "mma" of calibration.jsonl: 645
// TFLOP/s), which later chips are assumed to share.
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

// Instructions that the busiest multiprocessor issues in one step.
int64_t instructions(const StepwisePlan& plan, const Limits& limits) {
  const int64_t per_thread = kModel.instructions_per_thread + kModel.instructions_per_unit * plan.units;
  return ceil_div(plan.blocks, limits.multiprocessors) * plan.threads * per_thread;
}

StepwisePlan plan_stepwise(const Problem& problem, const Limits& limits) {
  const int64_t cells = problem.directions * problem.batch * problem.hidden;
  const int widest = static_cast<int>(kAccessBytes / compute_bytes(problem.type));
  const bool projected = problem.outputs != problem.hidden;
  StepwisePlan best{};
  for (const int units : {widest, 1}) {
    if (problem.hidden % units) continue;
    for (const int threads : {kStepwiseThreads, 128, 64}) {
      const StepwisePlan plan{.units = units,
                              .threads = threads,
                              .blocks = ceil_div(cells / units, threads),
                              .registers = kStepwiseRegisters,
                              .launches_per_step = projected ? 3 : 2};
      if (threads > limits.threads_per_multiprocessor ||
          threads * plan.registers > limits.registers_per_multiprocessor)
        continue;
      // Wide accesses and large blocks come first: others win only where they spread the work better.
      if (best.threads == 0 || instructions(plan, limits) < instructions(best, limits)) best = plan;
    }
  }
  if (best.threads == 0) throw std::invalid_argument("plan: the device takes no block of 64 threads");
  return best;
}

// Bytes that a cell of a step moves from and to memory, if 16-bit layers keep float32 gates and cell states:
// so they did when the model's constants were measured.
double cell_bytes(const Problem& problem) {
  const int64_t io = io_bytes(problem.type), compute = compute_bytes(problem.type);
  return static_cast<double>(problem.pass == Pass::forward ? 9 * compute + io : 7 * compute + 5 * io);
}

// To the nearest power of two, by its exponent: 1/sqrt(2) to sqrt(2) is 1. std::log2 would need a later glibc
// than torch.
double rounded_launch_us(const Limits& limits) {
  if (limits.launch_us <= 0) return 0;
  int exponent = 0;
  std::frexp(limits.launch_us / kLaunchUs * std::numbers::sqrt2, &exponent);
  return std::ldexp(kLaunchUs, exponent - 1);
}

// The longer of what a step takes the device and what it takes the host, which starts the next one meanwhile.
double stepwise_us(const Problem& problem, const StepwisePlan& plan, const Limits& limits) {
  const bool forward = problem.pass == Pass::forward;
  const double cycles_per_us = limits.clock_ghz * 1e3, memory_per_us = limits.memory_gb_s * 1e3;
  const double cells = static_cast<double>(problem.directions * problem.batch * problem.hidden);
  const double weights = 4.0 * problem.directions * problem.hidden * problem.outputs * io_bytes(problem.type);
  const double flops = 8.0 * cells * problem.outputs;
  const double flops_per_us = (forward ? kModel.product_share : kModel.product_backward_share) *
                              flops_per_cycle(problem, limits) * limits.multiprocessors * cycles_per_us;
  const double weights_per_us = weights <= kModel.l2_share * static_cast<double>(limits.l2_bytes)
                                    ? kModel.l2_bytes_per_cycle * limits.multiprocessors * cycles_per_us
                                    : kModel.weights_share * memory_per_us;
  const double product = kModel.product_us + (forward ? 0 : kModel.partial_sums_us) +
                         std::max(weights / weights_per_us, flops / flops_per_us);
  const double update = kModel.cells_us + cells * cell_bytes(problem) / (kModel.cells_share * memory_per_us);
  const int products = plan.launches_per_step - 1;
  const double device = products * product + update + plan.launches_per_step * kModel.gap_us;
  const double launches =
      products * (forward ? kModel.product_launches : kModel.product_backward_launches) + 1;
  return std::max(device, launches * rounded_launch_us(limits));
}

double persistent_us(const Problem& problem, const PersistentPlan& plan, const Limits& limits) {
  const bool forward = problem.pass == Pass::forward;
  const ExchangeCost& cost = plan.signal == Signal::flag ? kModel.flag : kModel.data;
  const double chunks = plan.chunks, row_tiles = plan.rows / kRowTile, tiles = row_tiles * plan.octets;
  const double bytes = static_cast<double>(plan.rows) * plan.k_blocks * kKBlockBytes * kPersistentWarps;
  const double read =
      std::max(cost.kilobyte * bytes / 1024, bytes / kModel.read_bytes_per_cycle - cost.latency);
  const double loads =
      std::ceil(plan.row_tiles_per_chunk / static_cast<double>(row_tiles_loaded(plan.k_blocks)));
  const double exchange = cost.latency + cost.member * plan.members + read +
                          (chunks - 1) * cost.further_chunk + (loads - 1) * kModel.exposed_load;

  const double terms = bytes / io_bytes(problem.type);
  const double products = 2 * terms * plan.weight_tiles * kWeightTile / flops_per_cycle(problem, limits);
  const int fragments = plan.weight_tiles * plan.k_blocks - plan.register_fragments;
  const double reads =
      chunks * std::ceil(plan.row_tiles_per_chunk / std::min(2.0, double(row_tiles_loaded(plan.k_blocks))));
  const double fragment_bytes = reads * std::max(0, fragments) * kFragmentBytes * kPersistentWarps;
  const double partial_bytes = row_tiles * plan.weight_tiles * 2 * 2 * kPartialFloats * sizeof(float);
  const double multiply = std::max(kModel.product_exposed * products,
                                   kModel.fragment_exposed * fragment_bytes / kModel.shared_bytes_per_cycle) +
                          kModel.partial_exposed * partial_bytes / kModel.shared_bytes_per_cycle;
  const double cells = (forward ? kModel.cells_forward : kModel.cells_backward) +
                       (tiles - 1) * (forward ? kModel.tile_forward : kModel.tile_backward);
  // By data, a chunk is read while the one before it is multiplied and updated.
  const double hidden = plan.signal == Signal::data ? std::min(read, multiply + cells) * (1 - 1 / chunks) : 0;
  const double cycles = kModel.margin * (exchange + kModel.step + multiply + cells - hidden);
  return cycles / (limits.clock_ghz * 1e3) + kModel.launch_persistent_us / static_cast<double>(problem.steps);
}

// The fewest compiled k-blocks with which the warps cover all terms of a sum; 0 where none do.
template <Pass pass>
int k_blocks_for(const Problem& problem) {
  const int64_t terms =
      pass == Pass::forward ? problem.hidden : ceil_div(problem.hidden, kUnitOctet) * kOctetTerms;
  const int64_t needed = ceil_div(terms * io_bytes(problem.type), kKBlockBytes * kPersistentWarps);
  constexpr auto& compiled = kCompiledKBlocks<pass>;
  const auto found = std::lower_bound(compiled.begin(), compiled.end(), needed);
  return found == compiled.end() ? 0 : *found;
}

// Calls use(plan) for each persistent plan that fits.
template <class Use>
void for_each_persistent_plan(const Problem& problem, const Limits& limits, Signal signal, const Use& use) {
  const bool has_kernels = problem.outputs == problem.hidden && limits.compute_capability >= 80 &&
                           (io_bytes(problem.type) == 2 || (problem.type == Type::float32 && problem.tf32));
  const int64_t row_tiles = ceil_div(problem.batch, kRowTile);
  // The flag of a block counts the chunks of all steps in 32 bits.
  if (!has_kernels || problem.steps * row_tiles >= int64_t{1} << 31) return;
  const bool forward = problem.pass == Pass::forward;
  const int k_blocks = forward ? k_blocks_for<Pass::forward>(problem) : k_blocks_for<Pass::backward>(problem);
  if (k_blocks == 0) return;

  // A block has up to kQuadTiles octets for each quad: forward an octet is two weight tiles, backward a
  // weight tile is two octets.
  const int share_octets = forward ? 1 : 2,
            most_shares = most_quads(problem.pass, k_blocks) * kQuadTiles / share_octets;
  for (int shares = 1; shares <= most_shares; ++shares) {
    const int weight_tiles = forward ? 2 * shares : shares, octets = shares * share_octets;
    const int64_t members = ceil_div(problem.hidden, weight_tiles * units_of_tile(problem.pass));
    const int64_t most_groups = limits.multiprocessors / (problem.directions * members);
    for (int64_t groups = 1; groups <= std::min(most_groups, row_tiles); ++groups) {
      const int64_t least = ceil_div(row_tiles, groups);
      for (int64_t chunk = std::min<int64_t>(least, most_shares / shares); chunk > 0; chunk /= 2) {
        const int64_t group_tiles = ceil_div(least, chunk) * chunk;
        if (ceil_div(row_tiles, group_tiles) != groups) continue;  // fewer groups have room for all rows
        const PersistentPlan plan{.groups = static_cast<int>(groups),
                                  .rows = static_cast<int>(group_tiles * kRowTile),
                                  .members = static_cast<int>(members),
                                  .weight_tiles = weight_tiles,
                                  .k_blocks = k_blocks,
                                  .register_fragments = register_fragments_beside(problem.pass, k_blocks),
                                  .row_tiles_per_chunk = static_cast<int>(chunk),
                                  .chunks = static_cast<int>(group_tiles / chunk),
                                  .octets = octets,
                                  .quads = static_cast<int>(ceil_div(octets * chunk, kQuadTiles)),
                                  .signal = signal,
                                  .pass = problem.pass};
        if (shared_bytes(plan) <= limits.shared_memory) use(plan);
      }
    }
  }
}

// The fastest of them by the model; with a division, of those that divide the layer so.
std::optional<PredictedPlan> plan_persistent(const Problem& problem, const Limits& limits, Signal signal,
                                             const std::optional<Division>& division) {
  std::optional<PredictedPlan> best;
  for_each_persistent_plan(problem, limits, signal, [&](const PersistentPlan& plan) {
    if (division && !(plan.groups == division->groups && plan.weight_tiles == division->weight_tiles &&
                      plan.row_tiles_per_chunk == division->row_tiles_per_chunk))
      return;
    const double us = persistent_us(problem, plan, limits);
    if (!best || us < best->us) best = {plan, us};
  });
  return best;
}

std::string format(const char* pattern, auto... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

}  // namespace

KernelPlan make_plan(const Problem& problem, const Limits& limits, StrategyChoice choice,
                     const std::optional<Division>& division) {
  const auto at_least_1 = [](const char* name, int64_t value) {
    if (value < 1)
      throw std::invalid_argument("plan: " + std::string(name) + " must be at least 1, got " +
                                  std::to_string(value));
  };
  at_least_1("hidden", problem.hidden);
  at_least_1("outputs", problem.outputs);
  at_least_1("directions", problem.directions);
  // Indices inside one step are 32-bit; the largest is that of a gate.
  constexpr int64_t kMaxGates = (int64_t{1} << 31) - 1;
  const int64_t gates = 4 * problem.directions * problem.batch * problem.hidden;
  if (gates > kMaxGates)
    throw std::invalid_argument("plan: directions * batch * 4 * hidden_size must be below 2^31, got " +
                                std::to_string(gates) + "; split the batch");
  if (problem.steps > kMaxGates)
    throw std::invalid_argument("plan: steps must be below 2^31, got " + std::to_string(problem.steps) +
                                "; split the sequence");
  const StepwisePlan stepwise = plan_stepwise(problem, limits);
  KernelPlan plan{.stepwise = stepwise,
                  .persistent = std::nullopt,
                  .stepwise_us = stepwise_us(problem, stepwise, limits),
                  .persistent_us = 0,
                  .reason = "asked for"};
  if (choice == StrategyChoice::stepwise) return plan;
  const bool fastest = choice == StrategyChoice::fastest;
  std::optional<PredictedPlan> best;
  if (choice != StrategyChoice::persistent_flags)
    best = plan_persistent(problem, limits, Signal::data, division);
  if (choice != StrategyChoice::persistent || !best) {  // flags need less shared memory
    const std::optional<PredictedPlan> flags = plan_persistent(problem, limits, Signal::flag, division);
    if (flags && (!best || flags->us < best->us)) best = flags;
  }
  if (!best && division)
    throw std::invalid_argument(
        "plan: groups,weight_tiles,row_tiles_per_chunk must divide this layer on the device, got " +
        std::to_string(division->groups) + "," + std::to_string(division->weight_tiles) + "," +
        std::to_string(division->row_tiles_per_chunk) + "; fusedlstm._C.persistent_plans lists what does");
  if (!best) {
    plan.reason = "no persistent kernel takes this layer on this device";
    return plan;
  }
  plan.persistent_us = best->us;
  if (fastest && !division) {
    plan.reason = limits.launch_us > 0 ? "predicted to be faster" : "predicted to be faster in a graph";
    if (plan.persistent_us >= plan.stepwise_us) return plan;
  }
  plan.persistent = best->plan;
  return plan;
}

std::vector<PredictedPlan> persistent_plans(const Problem& problem, const Limits& limits, Signal signal) {
  std::vector<PredictedPlan> plans;
  for_each_persistent_plan(problem, limits, signal, [&](const PersistentPlan& plan) {
    plans.push_back({plan, persistent_us(problem, plan, limits)});
  });
  std::stable_sort(plans.begin(), plans.end(),
                   [](const PredictedPlan& a, const PredictedPlan& b) { return a.us < b.us; });
  return plans;
}

std::optional<StrategyChoice> strategy_named(const std::string& name) {
  if (name == "fastest") return StrategyChoice::fastest;
  if (name == "stepwise") return StrategyChoice::stepwise;
  if (name == "persistent") return StrategyChoice::persistent;
  if (name == "persistent_flags") return StrategyChoice::persistent_flags;
  return std::nullopt;
}

std::string to_string(const KernelPlan& plan) {
  std::string text = "KernelPlan(";
  if (plan.persistent) {
    const PersistentPlan& p = *plan.persistent;
    text += format(
        "strategy=persistent, groups=%d, rows=%d, members=%d, weight_tiles=%d, k_blocks=%d, "
        "row_tiles_per_chunk=%d, signal=%s, shared_bytes=%lld",
        p.groups, p.rows, p.members, p.weight_tiles, p.k_blocks, p.row_tiles_per_chunk,
        p.signal == Signal::flag ? "flag" : "data", static_cast<long long>(shared_bytes(p)));
  } else {
    const StepwisePlan& s = plan.stepwise;
    text += format("strategy=stepwise, units=%d, threads=%d, blocks=%lld, registers=%d, launches_per_step=%d",
                   s.units, s.threads, static_cast<long long>(s.blocks), s.registers, s.launches_per_step);
  }
  text += format(", stepwise_us=%.2f", plan.stepwise_us);
  if (plan.persistent_us > 0) text += format(", persistent_us=%.2f", plan.persistent_us);
  return text + ", reason=\"" + plan.reason + "\")";
}

}  // namespace fusedlstm::cuda
