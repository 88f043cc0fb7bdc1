// The forward pass, in phases.
#include <algorithm>

#include "args.h"
#include "kernels/isa.h"
#include "strands.h"
#include "team.h"

namespace fusedlstm::cpu {
namespace {

enum class ForwardWork { pack, steps, project };
struct ForwardPhase {
  ForwardWork work;
  int64_t direction;
  Range steps;  // in the direction's order
  Barrier after = Barrier::rows;
};

template <class T, class W>
class ForwardPass {
 public:
  ForwardPass(const ForwardArgs<T, W>* directions, int64_t count, T* workspace, const ThreadPlan& plan)
      : directions_(directions), count_(count), workspace_(workspace), plan_(plan) {}

  void run() const {
    const std::array<std::vector<ForwardPhase>, 2> phases = phases_of_groups();
    run_team(plan_, phases.data(), [this](int64_t index, const ForwardPhase& phase) {
      const ForwardArgs<T, W>& args = directions_[phase.direction];
      const Strand strand(plan_, index);
      T* const workspace = workspace_ + index * k_.workspace(s_);
      switch (phase.work) {
        case ForwardWork::pack:
          return pack_weights(args, strand);
        case ForwardWork::steps:
          return run_steps(args, strand, phase.steps, workspace);
        case ForwardWork::project:
          return strand.for_each_share(of_projection_, workspace, [&](const Share<T>& share) {
            k_.project(args, step_at(args, phase.steps.begin), share);
          });
      }
    });
  }

 private:
  std::array<std::vector<ForwardPhase>, 2> phases_of_groups() const {
    std::array<std::vector<ForwardPhase>, 2> phases;
    for (int64_t d = 0; d < count_; ++d) {
      const ForwardArgs<T, W>& args = directions_[d];
      const bool projects = args.weight_hr && !args.recompute;
      // With unit threads a step reads the states that other strands write in the step before. With
      // `recompute` y is given, and a strand reads only cells of its own.
      const bool meets = projects || (plan_.unit_threads > 1 && !args.recompute);
      const int64_t together = meets ? 1 : kStepsOfPart;
      std::vector<ForwardPhase>& of_group = phases[d % plan_.groups];
      if (args.packed_ih) of_group.push_back({ForwardWork::pack, d, {}, Barrier::group});
      for (int64_t i = 0; i < s_.steps; i += together) {
        const Range steps{i, std::min(i + together, s_.steps)};
        of_group.push_back({ForwardWork::steps, d, steps});
        if (projects) of_group.push_back({ForwardWork::project, d, steps});
      }
    }
    return phases;
  }

  // The i-th step in the direction's order, and the index of a time block's first step in it.
  static int64_t step_at(const ForwardArgs<T, W>& args, int64_t i) {
    return args.reverse ? args.size.steps - 1 - i : i;
  }
  static int64_t first_index(const ForwardArgs<T, W>& args, Range time_block) {
    return args.reverse ? args.size.steps - time_block.end : time_block.begin;
  }

  void pack_weights(const ForwardArgs<T, W>& args, const Strand& strand) const {
    const Range panels = strand.part_of_group(ceil_div(s_.hidden, k_.lanes));
    k_.pack_gates(args.weight_ih, s_.hidden, s_.input, panels, args.packed_ih);
    k_.pack_gates(args.weight_hh, s_.hidden, s_.outputs, panels, args.packed_hh);
  }

  // Steps [begin, end) in the direction's order. The products with x of a time block come before its first
  // step.
  void run_steps(const ForwardArgs<T, W>& args, const Strand& strand, Range steps, T* workspace) const {
    auto time_block =
        std::partition_point(args.time_blocks.begin(), args.time_blocks.end(),
                             [&](const Range& block) { return first_index(args, block) < steps.begin; });
    for (int64_t i = steps.begin; i < steps.end; ++i) {
      const bool begins = time_block != args.time_blocks.end() && first_index(args, *time_block) == i;
      if (begins && !args.input_in_step)
        strand.for_each_share(of_inputs_, workspace,
                              [&](const Share<T>& share) { k_.input_gates(args, *time_block, share); });
      time_block += begins;
      strand.for_each_share(of_step_, workspace,
                            [&](const Share<T>& share) { k_.forward_step(args, step_at(args, i), share); });
    }
  }

  const ForwardArgs<T, W>* directions_;
  int64_t count_;
  T* workspace_;
  const ThreadPlan& plan_;
  const ForwardKernels<T, W>& k_ = forward_kernels<T, W>();
  const Sizes& s_ = directions_[0].size;
  const Division of_inputs_ = divide(s_.hidden, s_.input),
                 of_step_ = divide(s_.hidden, s_.outputs + (directions_[0].input_in_step ? s_.input : 0)),
                 of_projection_ = divide(s_.outputs, s_.hidden);

  Division divide(int64_t n, int64_t depth) const {
    return Division(plan_, n, k_.lanes, k_.nc_panels(depth), s_.batch);
  }
};

// h_n: the state after each row's last step, or h0 for a row of no steps.
template <class T, class W>
void write_last_states(const ForwardArgs<T, W>& args) {
  const Sizes& s = args.size;
  for (int64_t row = 0; row < s.batch; ++row) {
    const int64_t length = args.rows.length[row], last = args.reverse ? 0 : length - 1;
    const auto* const h =
        length ? args.y + args.rows.entry(last, row) * args.y_stride : args.h0 + row * s.outputs;
    std::copy_n(h, s.outputs, args.h_n + row * s.outputs);
  }
}

}  // namespace

// Panels of bfloat16 are half as large, but AMX pads the depth to 32, as many bytes as 16 floats.
int64_t packed_weights(int64_t depth, int64_t hidden) {
  return std::max<int64_t>(depth, 16) * 4 * round_up(hidden, kMaxLanes);
}

template <class T, class W>
PackedFrom packed_from() {
  return forward_kernels<T, W>().packed_from;
}

template <class T, class W>
int64_t forward_workspace(const Sizes& size, const ThreadPlan& plan) {
  return plan.threads() * forward_kernels<T, W>().workspace(size);
}

template <class T, class W>
void forward(const ForwardArgs<T, W>* directions, int64_t count, T* workspace, const ThreadPlan& plan) {
  ForwardPass<T, W>(directions, count, workspace, plan).run();
  for (int64_t d = 0; d < count; ++d)
    if (!directions[d].recompute) write_last_states(directions[d]);
}

template PackedFrom packed_from<double, double>();
template int64_t forward_workspace<double, double>(const Sizes&, const ThreadPlan&);
template void forward(const ForwardArgs<double, double>*, int64_t, double*, const ThreadPlan&);
template PackedFrom packed_from<float, float>();
template int64_t forward_workspace<float, float>(const Sizes&, const ThreadPlan&);
template void forward(const ForwardArgs<float, float>*, int64_t, float*, const ThreadPlan&);
template PackedFrom packed_from<float, BFloat16>();
template int64_t forward_workspace<float, BFloat16>(const Sizes&, const ThreadPlan&);
template void forward(const ForwardArgs<float, BFloat16>*, int64_t, float*, const ThreadPlan&);
template PackedFrom packed_from<float, Half>();
template int64_t forward_workspace<float, Half>(const Sizes&, const ThreadPlan&);
template void forward(const ForwardArgs<float, Half>*, int64_t, float*, const ThreadPlan&);

}  // namespace fusedlstm::cpu
