// Cells forward: gates from both products and the biases, then cell and hidden state. One launch for each
// step in the forward pass, one for all steps in a recomputation, where the hidden states are known.
#include "kept.cuh"
#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

// Kernels

// With a projection h holds the previous step's state on entry. It is stored as that step's output, and h is
// set to zero in the rows that take part in this step: the product with W_hr is added to it.
template <class IO>
__device__ __forceinline__ void store_projected(const ForwardArgs& args, int64_t step, unsigned row,
                                                unsigned output, bool active) {
  IO* const h = static_cast<IO*>(args.h) + int64_t{row} * args.size.outputs + output;
  if (step > 0) {
    const Coordinates before = cell_at(args.size, step - 1, row, output);
    IO y{};
    if (before.active) y = *h;
    if (before.has_entry)
      static_cast<IO*>(args.y)[before.sequence_row(args.size, before.t) * args.size.outputs + output] = y;
  }
  if (active) *h = IO{};
}

// Activates the gates, updates the cell states and returns the hidden states.
template <class IO, class C, int kUnits>
__device__ __forceinline__ Units<IO, kUnits> update_cells(GateUnits<C, kUnits>& gates,
                                                          Units<C, kUnits>& c_t) {
  Units<IO, kUnits> h;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const Gates<C> active =
        activate<AccurateMath>(Gates<C>{gates.i.at[u], gates.f.at[u], gates.g.at[u], gates.o.at[u]});
    c_t.at[u] = next_cell(active, c_t.at[u]);
    narrow(hidden_state<AccurateMath>(active, c_t.at[u]), h.at[u]);
    gates.i.at[u] = active.i, gates.f.at[u] = active.f, gates.g.at[u] = active.g, gates.o.at[u] = active.o;
  }
  return h;
}

template <class Traits>
__global__ void __launch_bounds__(kStepwiseThreads, Traits::kBlocks)
    lstm_forward_stepwise_kernel(const ForwardArgs args, const int64_t step) {
  using IO = typename Traits::IO;
  using C = typename Traits::C;
  constexpr int kUnits = Traits::kUnits;
  const KernelSizes& size = args.size;
  const int64_t H = size.hidden;
  Coordinates at;
  if (!find_cells<kUnits>(size, step, at)) return;

  if (args.unprojected)
    for (unsigned output = at.unit; output < at.unit + kUnits && output < size.outputs; ++output)
      store_projected<IO>(args, step, at.row, output, at.active);
  if (step == size.steps) return;

  const int64_t row = at.sequence_row(size, at.t) * H, sequence = row + at.unit;
  const int64_t state = at.row * H + at.unit;
  if (!at.active) {
    if (args.unprojected) store(args.unprojected, state, Units<IO, kUnits>{});
    if (!at.has_entry) return;
    if (!args.unprojected) store(args.y, sequence, Units<IO, kUnits>{});
    if (args.cells) store(args.cells, sequence, Units<IO, kUnits>{});
    if (args.kept) keep_gates<IO>(args.kept, row, H, at.unit, GateUnits<C, kUnits>{});
    return;
  }

  GateUnits<C, kUnits> gates = load_gates<kUnits, C>(args.gates, 4 * row + at.unit, H);
  if (args.bias) add_gates(gates, args.bias, 4 * at.d * H + at.unit, H);
  Units<C, kUnits> c_t{};
  if (!at.enters) {
    add_gates(gates, args.recurrent, 4 * at.row * H + at.unit, H);
    c_t = load<kUnits, C>(args.c_t, state);
  }
  const Units<IO, kUnits> h = update_cells<IO>(gates, c_t);

  store(args.c_t, state, c_t);
  if (args.kept) keep_gates<IO>(args.kept, row, H, at.unit, gates);
  if (args.cells) store(args.cells, sequence, narrow<IO>(c_t));
  if (args.unprojected) {
    store(args.unprojected, state, h);
  } else {
    store(args.y, sequence, h);
    store(args.h, state, h);
  }
}

// A thread updates its units in all steps. There is one launch, so that fewer blocks at once, with twice the
// registers of a step's kernel, do no harm.
template <class Traits>
__global__ void __launch_bounds__(kStepwiseThreads, Traits::kBlocks / 2)
    lstm_recompute_kernel(const ForwardArgs args) {
  using IO = typename Traits::IO;
  using C = typename Traits::C;
  constexpr int kUnits = Traits::kUnits;
  const KernelSizes& size = args.size;
  const int64_t H = size.hidden;
  Coordinates at;
  if (!find_cells<kUnits>(size, 0, at)) return;
  Units<C, kUnits> c_t = load<kUnits, C>(args.c_t, at.row * H + at.unit);
  for (int64_t step = 0; step < size.steps; ++step) {
    at = cell_at(size, step, at.row, at.unit);
    if (!at.has_entry) continue;
    const int64_t row = at.sequence_row(size, at.t) * H, sequence = row + at.unit;
    if (!at.active) {
      store(args.cells, sequence, Units<IO, kUnits>{});
      keep_gates<IO>(args.kept, row, H, at.unit, GateUnits<C, kUnits>{});
      continue;
    }
    GateUnits<C, kUnits> gates = load_gates<kUnits, C>(args.gates, 4 * row + at.unit, H);
    if (args.bias) add_gates(gates, args.bias, 4 * at.d * H + at.unit, H);
    if (at.enters) c_t = {};
    update_cells<IO>(gates, c_t);
    keep_gates<IO>(args.kept, row, H, at.unit, gates);
    store(args.cells, sequence, narrow<IO>(c_t));
  }
}

template <class IO>
__global__ void states_before_kernel(const KernelSizes size, const IO* h0, const IO* y, IO* before) {
  const int64_t P = size.outputs, per_direction = size.steps * size.batch * P;
  const int64_t stride = int64_t{grid_size()} * block_size();
  for (int64_t i = int64_t{block_index()} * block_size() + thread_index();
       i < size.directions * per_direction; i += stride) {
    const int64_t d = i / per_direction, t = i % per_direction / (size.batch * P), n = i / P % size.batch;
    const Coordinates at = cell_at(size, d ? size.steps - 1 - t : t,
                                   static_cast<unsigned>(d * size.batch + n), static_cast<unsigned>(i % P));
    IO state{};
    if (at.active && !at.enters)
      state = at.first ? h0[at.row * P + at.unit] : y[at.sequence_row(size, d ? t + 1 : t - 1) * P + at.unit];
    if (at.has_entry) before[(d * size.entries + at.entry(size, t)) * P + at.unit] = state;
  }
}

template <class IO>
__global__ void sum_biases_kernel(const IO* bias_ih, const IO* bias_hh, typename Compute<IO>::type* bias,
                                  unsigned gates) {
  const unsigned i = global_thread_index();
  if (i < gates) bias[i] = widen(bias_ih[i]) + widen(bias_hh[i]);
}

}  // namespace

// Launch and dispatch

void forward_cells(const ForwardArgs& args, int64_t step, Type io, const StepwisePlan& plan, Stream stream) {
  with_units(io, plan.units, [&]<class Traits>() {
    launch("forward_cells", &lstm_forward_stepwise_kernel<Traits>,
           launch_for_cells<Traits>(args.size, plan, stream), args, step);
  });
}

void recompute_cells(const ForwardArgs& args, Type io, const StepwisePlan& plan, Stream stream) {
  with_units(io, plan.units, [&]<class Traits>() {
    launch("recompute_cells", &lstm_recompute_kernel<Traits>,
           launch_for_cells<Traits>(args.size, plan, stream), args);
  });
}

void states_before(const KernelSizes& size, const void* h0, const void* y, void* before, Type io,
                   Stream stream) {
  with_type(io, [&]<class IO>(IO) {
    launch("states_before", &states_before_kernel<IO>,
           launch_strided(size.directions * size.steps * size.batch * size.outputs, stream), size,
           static_cast<const IO*>(h0), static_cast<const IO*>(y), static_cast<IO*>(before));
  });
}

void sum_biases(const void* bias_ih, const void* bias_hh, void* bias, int64_t gates, Type io, Stream stream) {
  with_type(io, [&]<class IO>(IO) {
    using C = typename Compute<IO>::type;
    launch("sum_biases", &sum_biases_kernel<IO>, launch_for(gates, kStepwiseThreads, stream),
           static_cast<const IO*>(bias_ih), static_cast<const IO*>(bias_hh), static_cast<C*>(bias),
           static_cast<unsigned>(gates));
  });
}

}  // namespace fusedlstm::cuda
