// All steps of a layer forward in one launch. A block holds the rows of W_hh for all four gates of its units.
#pragma once

#include "kept.cuh"
#include "lane_cells.cuh"
#include "persistent.cuh"
#include "products.cuh"

namespace fusedlstm::cuda {
namespace {

// Kernel

// What lane 8k + u has of gate k of unit u in a tile of cells, before the activation.
struct GateInput {
  int index;   // in a [S, D, 4H] tensor after the chunk's row
  float bias;  // the sum of both
};

// Gives lane 8j + u all gates of unit u in tile j; lane 8k + u has gate k of each tile. A transpose: first
// neighbouring groups of 8 lanes exchange, then groups two apart.
__device__ __forceinline__ Gates<float> gather_gates(float (&own)[kQuadTiles]) {
  const int group = lane_index() / kUnitOctet;
#pragma unroll
  for (int apart = 1; apart < kQuadTiles; apart *= 2)
#pragma unroll
    for (int j = 0; j < kQuadTiles; ++j) {
      if (j & apart) continue;
      const bool upper = group & apart;
      const float received = shuffle_xor(upper ? own[j] : own[j + apart], apart * kUnitOctet);
      (upper ? own[j] : own[j + apart]) = received;
    }
  return {own[0], own[1], own[2], own[3]};
}

// The cells of a lane in a step of a chunk.
struct ForwardCell {
  Coordinates at, next;     // in this step and in the next one
  float input[kQuadTiles];  // the input's share of gate lane / 8 of each tile
  Gates<float> gates;
  float c_t, h;
};

template <class Traits>
class Forward {
 public:
  using IO = typename Traits::IO;
  using Cells = LaneCells<Traits>;

  __device__ __forceinline__ Forward(const PersistentForwardArgs& args, const Ring<Traits>& ring,
                                     const Cells& cells, GateInput* gate_inputs)
      : args_(args), ring_(ring), cells_(cells), gate_inputs_(gate_inputs) {}

  // Publishes the states before the first step, and writes the final ones of rows without steps.
  __device__ __forceinline__ void init_cells() const {
    for (int i = 0; i < args_.plan.chunks; ++i) {
      const Chunk chunk = cells_.chunk(i);
      for_each_quad<Traits>(args_.plan, [&](int quad) {
        if (cells_.exists(chunk, quad)) {
          const int64_t state = cells_.state_row(chunk, quad) + cells_.unit(quad);
          static_cast<IO*>(args_.h_n)[state] = static_cast<const IO*>(args_.h0)[state];
          static_cast<IO*>(args_.c_n)[state] = static_cast<const IO*>(args_.c0)[state];
          cells_.state(chunk, quad) = widen(static_cast<const IO*>(args_.c0)[state]);
        }
        publish(0, chunk, quad, cells_.at(0, chunk, quad), 0);
      });
    }
  }

  // Every warp writes a tile of [tile][lane].
  __device__ __forceinline__ void init_gate_inputs(int d) const {
    static_assert(kPersistentWarps == kMaxTiles);
    const auto H = static_cast<int>(args_.size.hidden);
    const TileCell cell = cells_.cell_in(warp_index());
    // Where there is no unit, another one's gate is read, and nothing is made of it.
    const int gate = lane_index() / kUnitOctet * H + (cell.unit < H ? cell.unit : H - 1);
    const auto* const bias_ih = static_cast<const IO*>(args_.bias_ih[d]);
    const auto* const bias_hh = static_cast<const IO*>(args_.bias_hh[d]);
    gate_inputs_[thread_index()] = {4 * cells_.further_row(cell) + gate,
                                    bias_ih ? widen(bias_ih[gate]) + widen(bias_hh[gate]) : 0.0f};
  }

  // Finds the cells and loads the input's share of their gates.
  __device__ __forceinline__ ForwardCell load(int step, const Chunk& chunk, int64_t row, int quad) const {
    ForwardCell cell;
    cell.at = cells_.at(step, chunk, quad), cell.next = cells_.at(step + 1, chunk, quad);
#pragma unroll
    for (int j = 0; j < kQuadTiles; ++j) {
      if (quad * kQuadTiles + j >= cells_.tiles()) break;
      const bool active = shuffle(static_cast<int>(cell.at.active), j * kUnitOctet);
      cell.input[j] =
          active ? static_cast<const float*>(args_.gates)[4 * row + gate_input(quad, j).index] : 0;
    }
    return cell;
  }

  __device__ __forceinline__ void update(const Partials& partials, const Chunk& chunk, int quad,
                                         ForwardCell& cell) const {
    const int gate = lane_index() / kUnitOctet;
    float own[kQuadTiles] = {};
#pragma unroll
    for (int j = 0; j < kQuadTiles; ++j) {
      const int tile = quad * kQuadTiles + j;
      if (tile >= cells_.tiles()) break;
      const float sum = partials.total(tile * 4 + gate, warp_index());
      own[j] = FastMath::activate(cell.input[j] + gate_input(quad, j).bias + sum, gate == 2);
    }
    cell.gates = gather_gates(own);
    cell.c_t = cell.h = 0;
    if (!cell.at.active) {
      cell.gates = {};
      return;
    }
    float& c_t = cells_.state(chunk, quad);
    c_t = cell.c_t = next_cell(cell.gates, cell.at.enters ? 0.0f : c_t);
    cell.h = hidden_state<FastMath>(cell.gates, c_t);
  }

  // Publishes the state before `step`, in which the cell is `at`; `h` is that after step - 1.
  __device__ __forceinline__ void publish(int step, const Chunk& chunk, int quad, const Coordinates& at,
                                          float h) const {
    if (at.active && at.first)
      h = widen(static_cast<const IO*>(args_.h0)[cells_.state_row(chunk, quad) + cells_.unit(quad)]);
    const float values[1] = {at.active && !at.enters ? h : 0.0f};
    cells_.publish(ring_, step, chunk, quad, values);
  }

  // `row` is Cells::sequence_row().
  __device__ __forceinline__ void write_outputs(const Chunk& chunk, int64_t row, int quad,
                                                const ForwardCell& cell) const {
    if (!cell.at.has_entry) return;
    const int64_t H = args_.size.hidden;
    const int unit = cells_.unit(quad);
    row += cells_.further_row(quad);
    IO output;
    narrow(cell.h, output);
    static_cast<IO*>(args_.y)[row + unit] = output;
    if (args_.cells) narrow(cell.c_t, static_cast<IO*>(args_.cells)[row + unit]);
    if (args_.kept)
      keep_gates<IO>(args_.kept, row, H, unit,
                     GateUnits<float, 1>{{cell.gates.i}, {cell.gates.f}, {cell.gates.g}, {cell.gates.o}});
    if (!cell.at.active || !cell.at.last) return;
    const int64_t state = cells_.state_row(chunk, quad) + unit;
    static_cast<IO*>(args_.h_n)[state] = output;
    narrow(cell.c_t, static_cast<IO*>(args_.c_n)[state]);
  }

 private:
  __device__ __forceinline__ const GateInput& gate_input(int quad, int j) const {
    return gate_inputs_[(quad * kQuadTiles + j) * kLanes + lane_index()];
  }

  const PersistentForwardArgs& args_;
  const Ring<Traits>& ring_;
  const Cells& cells_;
  GateInput* gate_inputs_;  // [tile][lane]
};

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_forward_persistent_kernel(const PersistentForwardArgs args) {
  const PersistentPlan& plan = args.plan;
  const int steps = static_cast<int>(args.size.steps), chunks = plan.chunks;
  const Slice slice(args.size, plan);
  const Ring<Traits> ring(args.exchange, slice, plan);
  using Layout = SharedLayout<int>;
  float* const partial_sums = &shared_memory<float>();
  float* const cell_states = partial_sums + partial_buffers(Traits::kSignal) * Layout::partials(plan);
  auto* const gate_inputs = reinterpret_cast<GateInput*>(cell_states + Layout::cell_states(plan));
  const Weights<Traits> weights(args.weights, slice.d * plan.members + slice.member, plan.weight_tiles,
                                gate_inputs + kThreads);
  const LaneCells<Traits> lane_cells(args.size, plan, slice, cell_states);
  const Forward<Traits> forward(args, ring, lane_cells, gate_inputs);
  forward.init_gate_inputs(slice.d);
  forward.init_cells();
  block_barrier();
  if (thread_index() == 0) ring.signal(slice.member, static_cast<uint32_t>(chunks));

  constexpr bool kByData = Traits::kSignal == Signal::data;
  const bool loads_ahead = kByData && chunks > 1;
  const Producers<Traits> producers(args.size, plan);
  State<Traits> state(ring, weights, plan.row_tiles_per_chunk);
  if (loads_ahead) state.load(0, 0);
  int buffer = 0;
  for (int step = 0; step < steps; ++step) {
    for (int i = 0; i < chunks; ++i) {
      const Chunk chunk = lane_cells.chunk(i);
      const int64_t row = lane_cells.sequence_row(step, chunk);
      // Loads from memory are issued before the wait; what they read is used only after the products.
      ForwardCell cells[Traits::kQuads];
      for_each_quad<Traits>(plan, [&](int quad) { cells[quad] = forward.load(step, chunk, row, quad); });

      const auto count = static_cast<uint32_t>(step * chunks + i + 1);
      if (producers.any) ring.wait(producers.first, producers.last, count);
      if (!loads_ahead) state.load(step, chunk.first_tile);
      const Partials partials(partial_sums + buffer * Layout::partials(plan));
      state.multiply(partials, step, chunk.first_tile);
      const bool ends = i + 1 == chunks;
      if (loads_ahead) state.load(step + ends, ends ? 0 : chunk.first_tile + plan.row_tiles_per_chunk);
      block_barrier();

      for_each_quad<Traits>(plan, [&](int quad) {
        forward.update(partials, chunk, quad, cells[quad]);
        if (step + 1 < steps) forward.publish(step + 1, chunk, quad, cells[quad].next, cells[quad].h);
        if (step > 0) lane_cells.clear(ring, step - 1, chunk, quad);
      });
      if constexpr (kByData) {
        buffer ^= 1;
      } else {
        block_barrier();
        if (thread_index() == 0 && step + 1 < steps)
          ring.signal(slice.member, count + static_cast<uint32_t>(chunks));
      }
      if (ends) ring.fence_after(step);
      // No block waits for it.
      for_each_quad<Traits>(plan, [&](int quad) { forward.write_outputs(chunk, row, quad, cells[quad]); });
    }
  }
}

}  // namespace

// Launch and dispatch

template <class IO>
bool launch_forward(const PersistentForwardArgs& args, Stream stream) {
  bool launched = false;
  with_traits<IO, Pass::forward>(args.plan, [&]<class Traits>() {
    launched = launch_persistent("forward_persistent", &lstm_forward_persistent_kernel<Traits>, args, stream);
  });
  return launched;
}

}  // namespace fusedlstm::cuda
