// Cells backward, one launch for each step: gradients of the gates and of the cell state before the step.
#include "kept.cuh"
#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

// Kernels

template <class Traits>
__global__ void __launch_bounds__(kStepwiseThreads, Traits::kBlocks)
    lstm_backward_stepwise_kernel(const BackwardArgs args, const int64_t step) {
  using IO = typename Traits::IO;
  using C = typename Traits::C;
  constexpr int kUnits = Traits::kUnits;
  const KernelSizes& size = args.size;
  const int64_t H = size.hidden;
  Coordinates at;
  if (!find_cells<kUnits>(size, step, at)) return;

  const int64_t sequence = at.sequence_row(size, at.t) * H + at.unit, state = at.row * H + at.unit;
  const int64_t gate = 4 * (sequence - at.unit) + at.unit;
  if (!at.has_entry) return;
  const int64_t unprojected = (at.d * size.entries + at.entry(size, at.t)) * H + at.unit;
  if (!at.active) {
    store_gates(args.grad_gates, gate, H, GateUnits<IO, kUnits>{});
    if (args.unprojected) store(args.unprojected, unprojected, Units<IO, kUnits>{});
    return;
  }

  const auto gates = kept_gates<IO, C, kUnits>(args.gates, sequence - at.unit, H, at.unit);
  const auto c_t = widen(load<kUnits, IO>(args.cells, sequence));
  auto grad_c_t = load<kUnits, C>(args.grad_c_t, state);
  Units<C, kUnits> c_prev{}, grad_h{};
  if (at.first && !at.enters) {
    add<IO>(c_prev, args.c0, state);
  } else if (!at.enters) {
    add<IO>(c_prev, args.cells, at.sequence_row(size, at.d ? at.t + 1 : at.t - 1) * H + at.unit);
  }
  // In rows without a next step the product with W_hh was one with zeros: NaN if a weight is not finite.
  if (args.grad_h_t && (at.continues || args.unprojected)) grad_h = load<kUnits, C>(args.grad_h_t, state);
  if (args.grad_y) add<IO>(grad_h, args.grad_y, sequence);
  if (args.grad_h_n && at.last) add<IO>(grad_h, args.grad_h_n, state);
  if (args.grad_cells) add<IO>(grad_c_t, args.grad_cells, sequence);

  GateUnits<IO, kUnits> grad_gates;
  Units<IO, kUnits> h;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const Gates<C> active{gates.i.at[u], gates.f.at[u], gates.g.at[u], gates.o.at[u]};
    const CellDerivative<C> derivative = cell_derivative<AccurateMath>(active, c_prev.at[u], c_t.at[u]);
    const CellGradient<C> grad = cell_gradient(derivative, grad_h.at[u], grad_c_t.at[u]);
    narrow(grad.pre.i, grad_gates.i.at[u]);
    narrow(grad.pre.f, grad_gates.f.at[u]);
    narrow(grad.pre.g, grad_gates.g.at[u]);
    narrow(grad.pre.o, grad_gates.o.at[u]);
    narrow(derivative.h, h.at[u]);
    grad_c_t.at[u] = at.enters ? C(0) : grad.c_prev;
  }

  store(args.grad_c_t, state, grad_c_t);
  store_gates(args.grad_gates, gate, H, grad_gates);
  if (at.enters) grad_gates = {};
  store_gates(args.grad_gates_step, 4 * at.row * H + at.unit, H, grad_gates);
  if (args.unprojected) store(args.unprojected, unprojected, h);
}

template <class IO>
__global__ void seed_projected_kernel(const KernelSizes size, const IO* grad_y, const IO* grad_h_n, IO* out) {
  const int64_t P = size.outputs, per_direction = size.steps * size.batch * P;
  const int64_t stride = int64_t{grid_size()} * block_size();
  for (int64_t i = int64_t{block_index()} * block_size() + thread_index();
       i < size.directions * per_direction; i += stride) {
    const int64_t d = i / per_direction, t = i % per_direction / (size.batch * P), n = i / P % size.batch;
    const Coordinates at = cell_at(size, d ? size.steps - 1 - t : t,
                                   static_cast<unsigned>(d * size.batch + n), static_cast<unsigned>(i % P));
    if (!at.has_entry) continue;
    typename Compute<IO>::type sum = 0;
    if (at.active && grad_y) sum += widen(grad_y[at.sequence_row(size, at.t) * P + at.unit]);
    if (at.active && at.last && grad_h_n) sum += widen(grad_h_n[at.row * P + at.unit]);
    narrow(sum, out[(d * size.entries + at.entry(size, t)) * P + at.unit]);
  }
}

template <class IO>
__global__ void finish_grad_h0_kernel(const KernelSizes size, const IO* grad_h_n, IO* grad_h0) {
  const unsigned i = global_thread_index();
  if (i >= size.directions * size.batch * size.outputs) return;
  const int64_t row = i / size.outputs, n = row % size.batch;
  const bool stays = size.lengths && size.lengths[n] <= 0,
             cut = !stays && row < size.batch && size.resets && size.resets[n];
  if (stays && grad_h_n) {
    grad_h0[i] = grad_h_n[i];
  } else if (stays || cut) {
    grad_h0[i] = IO{};
  }
}

}  // namespace

// Launch and dispatch

void backward_cells(const BackwardArgs& args, int64_t step, Type io, const StepwisePlan& plan,
                    Stream stream) {
  bool aligned = true;  // tensors that come from the caller
  for (const void* pointer : {args.gates, args.cells, args.c0, args.grad_cells, args.grad_y, args.grad_h_n})
    aligned = aligned && reinterpret_cast<std::uintptr_t>(pointer) % kAccessBytes == 0;
  with_units(io, aligned ? plan.units : 1, [&]<class Traits>() {
    launch("backward_cells", &lstm_backward_stepwise_kernel<Traits>,
           launch_for_cells<Traits>(args.size, plan, stream), args, step);
  });
}

void seed_projected(const KernelSizes& size, const void* grad_y, const void* grad_h_n, void* grad_projected,
                    Type io, Stream stream) {
  with_type(io, [&]<class IO>(IO) {
    launch("seed_projected", &seed_projected_kernel<IO>,
           launch_strided(size.directions * size.steps * size.batch * size.outputs, stream), size,
           static_cast<const IO*>(grad_y), static_cast<const IO*>(grad_h_n),
           static_cast<IO*>(grad_projected));
  });
}

void finish_grad_h0(const KernelSizes& size, const void* grad_h_n, void* grad_h0, Type io, Stream stream) {
  with_type(io, [&]<class IO>(IO) {
    const int64_t elements = size.directions * size.batch * size.outputs;
    launch("finish_grad_h0", &finish_grad_h0_kernel<IO>, launch_for(elements, kStepwiseThreads, stream), size,
           static_cast<const IO*>(grad_h_n), static_cast<IO*>(grad_h0));
  });
}

}  // namespace fusedlstm::cuda
