// All steps of a layer backward in one launch. A block holds the columns of W_hh for its units; the blocks
// exchange the gradients of the gates, which are the state here.
#pragma once

#include "kept.cuh"
#include "lane_cells.cuh"
#include "persistent.cuh"
#include "products.cuh"

namespace fusedlstm::cuda {
namespace {

// Kernel

// A cell of a lane in a step of a chunk: all of its gradient that is known before that of the next step
// arrives, and the gradient of its gates.
struct BackwardCell {
  Coordinates at;
  CellDerivative<float> derivative;
  float grad_h_t;
  Gates<float> gates;
};

template <class IO>
__device__ __forceinline__ void store_gates(void* base, int64_t row, int64_t hidden, int unit,
                                            const Gates<float>& gates) {
  IO* const to = static_cast<IO*>(base) + 4 * row + unit;
  narrow(gates.i, to[0]);
  narrow(gates.f, to[hidden]);
  narrow(gates.g, to[2 * hidden]);
  narrow(gates.o, to[3 * hidden]);
}

template <class Traits>
class Backward {
 public:
  using IO = typename Traits::IO;
  using Cells = LaneCells<Traits>;

  __device__ __forceinline__ Backward(const PersistentBackwardArgs& args, const Ring<Traits>& ring,
                                      const Cells& cells)
      : args_(args), ring_(ring), cells_(cells) {}

  // Takes the gradients of the final cell states, and writes the results of rows without steps, and of rows
  // whose first step a reset precedes.
  __device__ __forceinline__ void init_cells() const {
    for (int i = 0; i < args_.plan.chunks; ++i) {
      const Chunk chunk = cells_.chunk(i);
      for_each_quad<Traits>(args_.plan, [&](int quad) {
        if (!cells_.exists(chunk, quad)) return;
        const int64_t row = cells_.state_row(chunk, quad), state = row + cells_.unit(quad);
        const IO grad = args_.grad_c_n ? static_cast<const IO*>(args_.grad_c_n)[state] : IO{};
        cells_.state(chunk, quad) = widen(grad);
        static_cast<IO*>(args_.grad_c0)[state] = grad;
        store_gates<IO>(args_.grad_gates_first, row, args_.size.hidden, cells_.unit(quad), Gates<float>{});
      });
    }
  }

  // Loads a cell as the forward pass left it, and the gradients that reach it from outside.
  __device__ __forceinline__ BackwardCell prepare(int step, const Chunk& chunk, int64_t row, int quad) const {
    BackwardCell cell{};
    cell.at = cells_.at(step, chunk, quad);
    if (!cell.at.active) return cell;
    const int64_t H = args_.size.hidden, state = cells_.state_row(chunk, quad) + cells_.unit(quad);
    const int further = cells_.further_row(quad) + cells_.unit(quad);
    const auto gates =
        kept_gates<IO, float, 1>(args_.gates, row + cells_.further_row(quad), H, cells_.unit(quad));
    const auto* const c_t = static_cast<const IO*>(args_.cells) + further;
    float c_before = 0;
    if (!cell.at.first && !cell.at.enters) c_before = widen(c_t[cells_.sequence_row(step - 1, chunk)]);
    if (cell.at.first && !cell.at.enters) c_before = widen(static_cast<const IO*>(args_.c0)[state]);
    if (args_.grad_y) cell.grad_h_t = widen(static_cast<const IO*>(args_.grad_y)[row + further]);
    if (args_.grad_h_n && cell.at.last) cell.grad_h_t += widen(static_cast<const IO*>(args_.grad_h_n)[state]);
    if (args_.grad_cells)
      cells_.state(chunk, quad) += widen(static_cast<const IO*>(args_.grad_cells)[row + further]);
    cell.derivative = cell_derivative<FastMath>(
        Gates<float>{gates.i.at[0], gates.f.at[0], gates.g.at[0], gates.o.at[0]}, c_before, widen(c_t[row]));
    return cell;
  }

  // The gradient of the cell's gates, zero in a row that takes no part.
  __device__ __forceinline__ void update(const Partials& partials, const Chunk& chunk, int quad,
                                         BackwardCell& cell) const {
    if (!cell.at.active) return;
    // Where no step continues, the product is one of zeros: NaN if a weight is not finite.
    const int tile = quad * kQuadTiles + lane_index() / kUnitOctet;
    if (cell.at.continues) cell.grad_h_t += partials.total(tile, warp_index());
    float& grad_c_t = cells_.state(chunk, quad);
    const CellGradient<float> grad = cell_gradient(cell.derivative, cell.grad_h_t, grad_c_t);
    grad_c_t = cell.at.enters ? 0.0f : grad.c_prev;
    cell.gates = grad.pre;
  }

  __device__ __forceinline__ void publish(int state_index, const Chunk& chunk, int quad,
                                          const BackwardCell& cell) const {
    const bool enters = cell.at.enters;
    const float values[4] = {enters ? 0 : cell.gates.i, enters ? 0 : cell.gates.f, enters ? 0 : cell.gates.g,
                             enters ? 0 : cell.gates.o};
    cells_.publish(ring_, state_index, chunk, quad, values);
  }

  // `row` is Cells::sequence_row().
  __device__ __forceinline__ void write_outputs(const Chunk& chunk, int64_t row, int quad,
                                                const BackwardCell& cell) const {
    if (!cell.at.has_entry) return;
    const int64_t H = args_.size.hidden;
    const int unit = cells_.unit(quad);
    store_gates<IO>(args_.grad_gates, row + cells_.further_row(quad), H, unit, cell.gates);
    if (!cell.at.active || !cell.at.first) return;
    const int64_t state_row = cells_.state_row(chunk, quad);
    narrow(cells_.state(chunk, quad), static_cast<IO*>(args_.grad_c0)[state_row + unit]);
    if (!cell.at.enters) store_gates<IO>(args_.grad_gates_first, state_row, H, unit, cell.gates);
  }

  // grad_bias: adds up, for each gate and unit of the block, the sums of the lanes that had it. `sums` is
  // [quad][gate][thread].
  __device__ __forceinline__ void sum_bias(const Slice& slice, const Gates<float> (&own)[Traits::kQuads],
                                           float* sums) const {
    for_each_quad<Traits>(args_.plan, [&](int quad) {
      float* const to = sums + quad * 4 * kThreads + thread_index();
      to[0] = own[quad].i, to[kThreads] = own[quad].f, to[2 * kThreads] = own[quad].g;
      to[3 * kThreads] = own[quad].o;
    });
    block_barrier();
    const int octets = args_.plan.octets, octet = warp_index(), gate = lane_index() / kUnitOctet;
    const int unit = cells_.cell_in(octet).unit;
    if (octet >= octets || unit >= args_.size.hidden) return;
    float total = 0;
    for (int tile = octet; tile < cells_.tiles(); tile += octets) {
      const int lane = tile % kQuadTiles * kUnitOctet + lane_index() % kUnitOctet;
      for (int warp = 0; warp < kPersistentWarps; ++warp)
        total += sums[((tile / kQuadTiles * 4 + gate) * kPersistentWarps + warp) * kLanes + lane];
    }
    const int64_t group = slice.d * args_.plan.groups + slice.group;
    args_.grad_bias[(group * 4 + gate) * args_.size.hidden + unit] = total;
  }

 private:
  const PersistentBackwardArgs& args_;
  const Ring<Traits>& ring_;
  const Cells& cells_;
};

__device__ __forceinline__ void add(Gates<float>& sum, const Gates<float>& gates) {
  sum.i += gates.i, sum.f += gates.f, sum.g += gates.g, sum.o += gates.o;
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_backward_persistent_kernel(const PersistentBackwardArgs args) {
  const PersistentPlan& plan = args.plan;
  const int steps = static_cast<int>(args.size.steps), chunks = plan.chunks;
  const Slice slice(args.size, plan);
  const Ring<Traits> ring(args.exchange, slice, plan);
  using Layout = SharedLayout<int>;
  float* const partial_sums = &shared_memory<float>();
  float* const cell_gradients = partial_sums + partial_buffers(Traits::kSignal) * Layout::partials(plan);
  const Weights<Traits> weights(args.weights, slice.d * plan.members + slice.member, plan.weight_tiles,
                                cell_gradients + Layout::cell_states(plan));
  const LaneCells<Traits> lane_cells(args.size, plan, slice, cell_gradients);
  const Backward<Traits> backward(args, ring, lane_cells);
  backward.init_cells();

  constexpr bool kByData = Traits::kSignal == Signal::data;
  const bool loads_ahead = kByData && chunks > 1;
  const Producers<Traits> producers(args.size, plan);
  State<Traits> state(ring, weights, plan.row_tiles_per_chunk);
  Gates<float> bias[Traits::kQuads] = {};
  int buffer = 0;
  for (int done = 0; done < steps; ++done) {  // also the number of the state that the step publishes
    const int step = steps - 1 - done;
    for (int i = 0; i < chunks; ++i) {
      const Chunk chunk = lane_cells.chunk(i);
      const bool ends = i + 1 == chunks;
      const int64_t row = lane_cells.sequence_row(step, chunk);
      // The derivatives are made before the wait: they do not depend on what it waits for.
      BackwardCell cells[Traits::kQuads];
      for_each_quad<Traits>(plan, [&](int quad) { cells[quad] = backward.prepare(step, chunk, row, quad); });

      const auto count = static_cast<uint32_t>(done * chunks + i + 1);  // of chunks, when this one is done
      const Partials partials(partial_sums + buffer * Layout::partials(plan));
      if (done > 0) {
        if (producers.any) ring.wait(producers.first, producers.last, count - static_cast<uint32_t>(chunks));
        if (!loads_ahead) state.load(done - 1, chunk.first_tile);
        state.multiply(partials, done - 1, chunk.first_tile);
      }
      if (loads_ahead && done + ends > 0)
        state.load(done + ends - 1, ends ? 0 : chunk.first_tile + plan.row_tiles_per_chunk);
      if (done > 0) block_barrier();

      for_each_quad<Traits>(plan, [&](int quad) {
        backward.update(partials, chunk, quad, cells[quad]);
        if (step > 0) backward.publish(done, chunk, quad, cells[quad]);
        if (done > 1) lane_cells.clear(ring, done - 2, chunk, quad);
      });
      if constexpr (kByData) {
        buffer ^= 1;
      } else {
        block_barrier();
        if (thread_index() == 0 && step > 0) ring.signal(slice.member, count);
      }
      if (ends) ring.fence_after(done);
      for_each_quad<Traits>(plan, [&](int quad) {
        add(bias[quad], cells[quad].gates);
        backward.write_outputs(chunk, row, quad, cells[quad]);
      });
    }
  }
  block_barrier();
  backward.sum_bias(slice, bias, partial_sums);
}

}  // namespace

// Launch and dispatch

template <class IO>
bool launch_backward(const PersistentBackwardArgs& args, Stream stream) {
  bool launched = false;
  with_traits<IO, Pass::backward>(args.plan, [&]<class Traits>() {
    launched =
        launch_persistent("backward_persistent", &lstm_backward_persistent_kernel<Traits>, args, stream);
  });
  return launched;
}

}  // namespace fusedlstm::cuda
