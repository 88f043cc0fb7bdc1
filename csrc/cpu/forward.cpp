// The forward pass as the team goes through it.
#include <algorithm>

#include "args.h"
#include "kernels/isa.h"
#include "threads.h"

namespace fusedlstm::cpu {
namespace {

template <class T, class W>
void pack_weights(const ForwardKernels<T, W>& k, const ForwardArgs<T, W>& args, const TeamThread& thread) {
  const Sizes& s = args.size;
  const Range panels = thread.part_of_group(ceil_div(s.hidden, k.lanes));
  k.pack_gates(args.weight_ih, s.hidden, s.input, panels, args.packed_ih);
  k.pack_gates(args.weight_hh, s.hidden, s.outputs, panels, args.packed_hh);
}

// One direction, by one thread of the group that runs it.
template <class T, class W>
void forward_direction(const ForwardKernels<T, W>& k, const ForwardArgs<T, W>& args, const TeamThread& thread,
                       T* workspace, Barriers& barriers) {
  const Sizes& s = args.size;
  if (args.packed_ih) {
    pack_weights(k, args, thread);
    barriers.wait_for_group(thread);
  }
  const auto shares = [&](int64_t n, int64_t depth) {
    return thread.shares(n, k.lanes, k.nc_panels(depth), s.batch, workspace);
  };
  const auto of_inputs = shares(s.hidden, s.input),
             of_step = shares(s.hidden, s.outputs + (args.input_in_step ? s.input : 0)),
             of_projection = shares(s.outputs, s.hidden);
  const auto run_step = [&](int64_t t) {
    for (const Share<T>& share : of_step) k.forward_step(args, t, share);
    if (args.recompute) return;  // no barrier: y is given, and a thread reads only cells of its own
    if (args.weight_hr) {
      barriers.wait_for_unit_threads(thread);
      for (const Share<T>& share : of_projection) k.project(args, t, share);
    }
    barriers.wait_for_unit_threads(thread);
  };
  for (const Range& time_block : args.time_blocks) {
    if (!args.input_in_step)
      for (const Share<T>& share : of_inputs) k.input_gates(args, time_block, share);
    for (int64_t i = 0; i < time_block.end - time_block.begin; ++i)
      run_step(args.reverse ? time_block.end - 1 - i : time_block.begin + i);
  }
}

// h_n and c_n: the states after each row's last step, or h0 and c0 for a row of no steps.
template <class T, class W>
void write_last_states(const ForwardArgs<T, W>& args) {
  const Sizes& s = args.size;
  for (int64_t row = 0; row < s.batch; ++row) {
    const int64_t length = args.rows.length[row], last = args.reverse ? 0 : length - 1;
    const auto* const h =
        length ? args.y + args.rows.entry(last, row) * args.y_stride : args.h0 + row * s.outputs;
    const T* const c =
        length ? args.cells + (args.keep_cells ? args.rows.entry(last, row) : row) * args.cells_stride
               : args.c0 + row * s.hidden;
    std::copy_n(h, s.outputs, args.h_n + row * s.outputs);
    if (c != args.c_n + row * s.hidden) std::copy_n(c, s.hidden, args.c_n + row * s.hidden);
  }
}

}  // namespace

// Panels of bfloat16 are half as large, but AMX pads the depth to 32, as many bytes as 16 floats.
int64_t packed_weights(int64_t depth, int64_t hidden) {
  return std::max<int64_t>(depth, 16) * 4 * round_up(hidden, kMaxLanes);
}

template <class T, class W>
int64_t forward_workspace(const Sizes& size, const ThreadPlan& plan) {
  return plan.threads() * forward_kernels<T, W>().workspace(size);
}

template <class T, class W>
void forward(const ForwardArgs<T, W>* directions, int64_t count, T* workspace, const ThreadPlan& planned) {
  const ForwardKernels<T, W>& k = forward_kernels<T, W>();
  Barriers barriers(planned);
  run_team(planned.threads(), [&](int64_t index, int64_t team) {
    const ThreadPlan plan = plan_for_team(planned, team);
    const TeamThread thread(plan, index);
    for (int64_t d = thread.group; d < count; d += plan.groups)
      forward_direction(k, directions[d], thread, workspace + index * k.workspace(directions[d].size),
                        barriers);
  });
  for (int64_t d = 0; d < count; ++d)
    if (!directions[d].recompute) write_last_states(directions[d]);
}

template int64_t forward_workspace<double, double>(const Sizes&, const ThreadPlan&);
template void forward(const ForwardArgs<double, double>*, int64_t, double*, const ThreadPlan&);
template int64_t forward_workspace<float, float>(const Sizes&, const ThreadPlan&);
template void forward(const ForwardArgs<float, float>*, int64_t, float*, const ThreadPlan&);
template int64_t forward_workspace<float, BFloat16>(const Sizes&, const ThreadPlan&);
template void forward(const ForwardArgs<float, BFloat16>*, int64_t, float*, const ThreadPlan&);
template int64_t forward_workspace<float, Half>(const Sizes&, const ThreadPlan&);
template void forward(const ForwardArgs<float, Half>*, int64_t, float*, const ThreadPlan&);

}  // namespace fusedlstm::cpu
