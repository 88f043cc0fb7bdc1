// Cells forward: gates from both products and the biases, then cell and hidden state. One step a launch in
// the forward pass, all steps in one where the states before them are known.
#include "cells.cuh"
#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

// With a projection, h is the previous step's state on entry: it becomes that step's output, and leaves zero
// behind in the rows that go on, for the product with W_hr to be added to.
template <class IO>
__device__ __forceinline__ void store_projected(const ForwardArgs& args, int64_t step, unsigned row,
                                                unsigned output, bool goes_on) {
  IO* const h = static_cast<IO*>(args.h) + int64_t{row} * args.size.outputs + output;
  if (step > 0) {
    const Place before = place(args.size, step - 1, row, output);
    IO y{};
    if (before.active) y = *h;
    static_cast<IO*>(args.y)[before.sequence_row(args.size, before.t) * args.size.outputs + output] = y;
  }
  if (goes_on) *h = IO{};
}

// Activates the gates, whose sum is complete, and updates the cells and hidden states.
template <class IO, class C, int kUnits>
__device__ __forceinline__ Units<IO, kUnits> update(GateUnits<C, kUnits>& gates, Units<C, kUnits>& c) {
  Units<IO, kUnits> h;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const Gates<C> active =
        activate<AccurateMath>(Gates<C>{gates.i.at[u], gates.f.at[u], gates.g.at[u], gates.o.at[u]});
    c.at[u] = next_cell(active, c.at[u]);
    narrow(hidden_state<AccurateMath>(active, c.at[u]), h.at[u]);
    gates.i.at[u] = active.i, gates.f.at[u] = active.f, gates.g.at[u] = active.g, gates.o.at[u] = active.o;
  }
  return h;
}

template <class IO, int kUnits>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    lstm_forward_stepwise_kernel(const ForwardArgs args, const int64_t step) {
  using C = typename Compute<IO>::type;
  const Sizes& size = args.size;
  const int64_t H = size.hidden;
  Place at;
  if (!find_cells<kUnits>(size, step, at)) return;

  if (args.unprojected)
    for (unsigned output = at.unit; output < at.unit + kUnits && output < size.outputs; ++output)
      store_projected<IO>(args, step, static_cast<unsigned>(at.row), output, at.active);
  if (step == size.steps) return;

  const int64_t sequence = at.sequence_row(size, at.t) * H + at.unit, state = at.row * H + at.unit;
  if (!at.active) {
    store(args.unprojected ? args.unprojected : args.y, args.unprojected ? state : sequence,
          Units<IO, kUnits>{});
    if (args.cell) store(args.cell, sequence, Units<C, kUnits>{});
    return;
  }

  const int64_t gate = 4 * (sequence - at.unit) + at.unit;
  GateUnits<C, kUnits> gates = load_gates<kUnits, C>(args.gates, gate, H);
  if (args.bias) add_gates(gates, args.bias, 4 * at.d * H + at.unit, H);
  Units<C, kUnits> c{};
  if (!at.enters) {
    add_gates(gates, args.recurrent, 4 * at.row * H + at.unit, H);
    c = load<kUnits, C>(args.c, state);
  }
  const Units<IO, kUnits> h = update<IO>(gates, c);

  store(args.c, state, c);
  if (args.keep_gates) store_gates(args.gates, gate, H, gates);
  if (args.cell) store(args.cell, sequence, c);
  if (args.unprojected) {
    store(args.unprojected, state, h);
  } else {
    store(args.y, sequence, h);
    store(args.h, state, h);
  }
}

// A thread takes its units through all steps; one launch has time for twice the registers of a step's
// kernels.
template <class IO, int kUnits>
__global__ void __launch_bounds__(kMaxThreads, 2) lstm_recompute_kernel(const ForwardArgs args) {
  using C = typename Compute<IO>::type;
  const Sizes& size = args.size;
  const int64_t H = size.hidden;
  Place at;
  if (!find_cells<kUnits>(size, 0, at)) return;
  Units<C, kUnits> c = load<kUnits, C>(args.c, at.row * H + at.unit);
  for (int64_t step = 0; step < size.steps; ++step) {
    at = place(size, step, static_cast<unsigned>(at.row), at.unit);
    const int64_t sequence = at.sequence_row(size, at.t) * H + at.unit;
    if (!at.active) {
      store(args.cell, sequence, Units<C, kUnits>{});
      continue;
    }
    const int64_t gate = 4 * (sequence - at.unit) + at.unit;
    GateUnits<C, kUnits> gates = load_gates<kUnits, C>(args.gates, gate, H);
    if (args.bias) add_gates(gates, args.bias, 4 * at.d * H + at.unit, H);
    if (at.enters) c = {};
    update<IO>(gates, c);
    store_gates(args.gates, gate, H, gates);
    store(args.cell, sequence, c);
  }
}

template <class IO>
__global__ void states_before_kernel(const Sizes size, const IO* h0, const IO* y, IO* before) {
  const int64_t P = size.outputs, per_direction = size.steps * size.batch * P;
  const int64_t stride = int64_t{grid_size()} * block_size();
  for (int64_t i = int64_t{block_index()} * block_size() + thread_index();
       i < size.directions * per_direction; i += stride) {
    const int64_t d = i / per_direction, t = i % per_direction / (size.batch * P), n = i / P % size.batch;
    const Place at = place(size, d ? size.steps - 1 - t : t, static_cast<unsigned>(d * size.batch + n),
                           static_cast<unsigned>(i % P));
    IO state{};
    if (at.active && !at.enters)
      state = at.first ? h0[at.row * P + at.unit] : y[at.sequence_row(size, d ? t + 1 : t - 1) * P + at.unit];
    before[i] = state;
  }
}

template <class IO>
__global__ void sum_biases_kernel(const IO* bias_ih, const IO* bias_hh, typename Compute<IO>::type* bias,
                                  unsigned gates) {
  const unsigned i = item_index();
  if (i < gates) bias[i] = widen(bias_ih[i]) + widen(bias_hh[i]);
}

}  // namespace

void forward_cells(const ForwardArgs& args, int64_t step, Type io, const Stepwise& plan, Stream stream) {
  with_units(io, plan.units, [&]<class IO, int kUnits>() {
    const int64_t items = args.size.directions * args.size.batch * (args.size.hidden / kUnits);
    launch("forward_cells", &lstm_forward_stepwise_kernel<IO, kUnits>,
           launch_for(items, plan.threads, stream), args, step);
  });
}

void recompute_cells(const ForwardArgs& args, Type io, const Stepwise& plan, Stream stream) {
  with_units(io, plan.units, [&]<class IO, int kUnits>() {
    const int64_t items = args.size.directions * args.size.batch * (args.size.hidden / kUnits);
    launch("recompute_cells", &lstm_recompute_kernel<IO, kUnits>, launch_for(items, plan.threads, stream),
           args);
  });
}

void states_before(const Sizes& size, const void* h0, const void* y, void* before, Type io, Stream stream) {
  with_type(io, [&]<class IO>(IO) {
    launch("states_before", &states_before_kernel<IO>,
           launch_for_all(size.directions * size.steps * size.batch * size.outputs, stream), size,
           static_cast<const IO*>(h0), static_cast<const IO*>(y), static_cast<IO*>(before));
  });
}

void sum_biases(const void* bias_ih, const void* bias_hh, void* bias, int64_t gates, Type io, Stream stream) {
  with_type(io, [&]<class IO>(IO) {
    using C = typename Compute<IO>::type;
    launch("sum_biases", &sum_biases_kernel<IO>, launch_for(gates, 256, stream),
           static_cast<const IO*>(bias_ih), static_cast<const IO*>(bias_hh), static_cast<C*>(bias),
           static_cast<unsigned>(gates));
  });
}

}  // namespace fusedlstm::cuda
