// All steps of a layer forward in one launch. A block holds the rows of W_hh for all four gates of its units.
#pragma once

#include "persistent.cuh"

namespace fusedlstm::cuda {
namespace {

// Traits: PersistentTraits, and the row tiles that one load of a weight fragment serves; their states are in
// registers.
template <class Traits>
constexpr int kRowTilesAtOnce = Traits::kKBlocks <= 6 ? 2 : 1;

// Kernel

// The cells of a lane in a step: one unit, two neighbouring rows of the batch.
struct LaneCells {
  Coordinates at[2];
  bool exists[2];
};

// The cells of a lane in rows `first_row` and the next of the group.
__device__ __forceinline__ LaneCells lane_cells(const KernelSizes& size, const Slice& slice, int step,
                                                int first_row, int unit, bool unit_exists) {
  LaneCells cells;
  for (int r = 0; r < 2; ++r) {
    const int row = first_row + r;
    cells.exists[r] = unit_exists && row < slice.row_count;
    const auto n = static_cast<unsigned>(slice.first_row + (cells.exists[r] ? row : 0));
    cells.at[r] = cell_at(size, step, static_cast<unsigned>(slice.d), n, static_cast<unsigned>(unit));
  }
  return cells;
}

template <class IO>
__device__ __forceinline__ void load_bias(const PersistentForwardArgs& args, int d, int unit,
                                          bool unit_exists, float (&bias)[4]) {
  const int64_t H = args.size.hidden;
  if (const auto* const bias_ih = static_cast<const IO*>(args.bias_ih[d]); bias_ih && unit_exists) {
    const auto* const bias_hh = static_cast<const IO*>(args.bias_hh[d]);
    for (int gate = 0; gate < 4; ++gate)
      bias[gate] = widen(bias_ih[gate * H + unit]) + widen(bias_hh[gate * H + unit]);
  }
}

// The input's share of the gates.
__device__ __forceinline__ void load_input_gates(const PersistentForwardArgs& args, const LaneCells& cells,
                                                 int unit, float (&gates)[2][4]) {
  const KernelSizes& size = args.size;
  const int64_t H = size.hidden;
  for (int r = 0; r < 2; ++r) {
    if (!cells.exists[r] || !cells.at[r].active) continue;
    const auto* const gate =
        static_cast<const float*>(args.gates) + 4 * cells.at[r].sequence_row(size, cells.at[r].t) * H + unit;
    gates[r][0] = gate[0], gates[r][1] = gate[H], gates[r][2] = gate[2 * H], gates[r][3] = gate[3 * H];
  }
}

// Multiplies a chunk of the state before `step` by the block's weights.
template <class Traits>
__device__ __forceinline__ void multiply_state(const PersistentForwardArgs& args, const Ring<Traits>& ring,
                                               const Weights<Traits>& weights, const Partials& partials,
                                               int step, int first_tile) {
  const PersistentPlan& plan = args.plan;
  const auto multiply = [&]<int kRowTiles>(int tile) {
    uint4 state[kRowTiles][Traits::kKBlocks];
    ring.template load<0>(step, first_tile + tile, state);
    ring.template poll<0>(step, first_tile + tile, state);
    weights.template multiply<0>(state, [&](int weight_tile, int further, const float (&sum)[4]) {
      partials.put((tile + further) * plan.weight_tiles + weight_tile, sum);
    });
  };
  constexpr int kAtOnce = kRowTilesAtOnce<Traits>;
  int tile = 0;
  for (; tile + kAtOnce <= plan.row_tiles_per_chunk; tile += kAtOnce)
    multiply.template operator()<kAtOnce>(tile);
  if (tile < plan.row_tiles_per_chunk) multiply.template operator()<1>(tile);
}

// Activates the gates, whose partial sums begin at `tile_product`, and makes c_t and h.
template <class IO>
__device__ __forceinline__ void update_cells(const PersistentForwardArgs& args, const Partials& partials,
                                             int tile_product, const float2* cell_states, int chunk,
                                             const float (&bias)[4], const LaneCells& cells, int unit,
                                             float (&gates)[2][4], float (&c_t)[2], float (&h)[2]) {
  const int64_t H = args.size.hidden;
  const float4 if_sum = partials.total(tile_product);
  const float4 go_sum = partials.total(tile_product + 1);
  const float sums[2][4] = {{if_sum.x, if_sum.z, go_sum.x, go_sum.z},
                            {if_sum.y, if_sum.w, go_sum.y, go_sum.w}};
  const float2 c_before = cell_states[chunk * kThreads + thread_index()];
  for (int r = 0; r < 2; ++r) {
    const Coordinates& at = cells.at[r];
    if (!cells.exists[r] || !at.active) continue;
    const float before = at.first ? widen(static_cast<const IO*>(args.c0)[at.row * H + unit])
                         : r      ? c_before.y
                                  : c_before.x;
    for (int gate = 0; gate < 4; ++gate) gates[r][gate] += bias[gate] + sums[r][gate];
    const Gates<float> active =
        activate<FastMath>(Gates<float>{gates[r][0], gates[r][1], gates[r][2], gates[r][3]});
    c_t[r] = next_cell(active, at.enters ? 0.0f : before);
    h[r] = hidden_state<FastMath>(active, c_t[r]);
    gates[r][0] = active.i, gates[r][1] = active.f, gates[r][2] = active.g, gates[r][3] = active.o;
  }
}

template <class IO>
__device__ __forceinline__ void write_outputs(const PersistentForwardArgs& args, const LaneCells& cells,
                                              int unit, const float (&gates)[2][4], const float (&c_t)[2],
                                              const float (&h)[2]) {
  const KernelSizes& size = args.size;
  const int64_t H = size.hidden;
  for (int r = 0; r < 2; ++r) {
    const Coordinates& at = cells.at[r];
    if (!cells.exists[r] || !at.has_entry) continue;
    const int64_t here = at.sequence_row(size, at.t) * H, state = at.row * H + unit;
    IO output;
    narrow(h[r], output);
    static_cast<IO*>(args.y)[here + unit] = output;
    if (args.cells) static_cast<float*>(args.cells)[here + unit] = c_t[r];
    if (!at.active) continue;
    if (args.keep_gates) {
      auto* const gate = static_cast<float*>(args.gates) + 4 * here + unit;
      gate[0] = gates[r][0], gate[H] = gates[r][1], gate[2 * H] = gates[r][2], gate[3 * H] = gates[r][3];
    }
    if (!at.last) continue;
    static_cast<IO*>(args.h_n)[state] = output;
    narrow(c_t[r], static_cast<IO*>(args.c_n)[state]);
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_forward_persistent_kernel(const PersistentForwardArgs args) {
  using IO = typename Traits::IO;
  const KernelSizes& size = args.size;
  const PersistentPlan& plan = args.plan;
  const int64_t H = size.hidden;
  const int steps = static_cast<int>(size.steps);
  const int thread = static_cast<int>(thread_index()), warp = thread / kLanes, lane = thread % kLanes;
  const int octets = plan.weight_tiles / 2, chunks = plan.rows / kRowTile / plan.row_tiles_per_chunk;
  const Slice slice(size, plan);
  const Ring<Traits> ring(args.exchange, slice, plan);
  using Layout = SharedLayout<int>;
  const Partials partials(&shared_memory<float4>());
  auto* const cell_states = reinterpret_cast<float2*>(
      &shared_memory<float4>() + Layout::partials(plan.row_tiles_per_chunk, plan.weight_tiles));
  const Weights<Traits> weights(args.weights, slice.d * plan.members + slice.member, plan.weight_tiles,
                                cell_states + chunks * Layout::kStatesOfPass);

  // In each chunk a warp updates one tile of cells: an octet of units in a row tile. The last block may have
  // fewer units than room for them, and the exchange has no memory for octets beyond the last unit.
  const int block_unit = slice.member * octets * kUnitOctet;
  const int octet = warp % octets, chunk_tile = warp / octets, first_unit = block_unit + octet * kUnitOctet;
  const bool has_tile = chunk_tile < plan.row_tiles_per_chunk && first_unit < H;
  const int unit = first_unit + lane / 4;
  const bool unit_exists = has_tile && unit < H;
  float bias[4] = {};
  load_bias<IO>(args, slice.d, unit, unit_exists, bias);

  const auto cells_at = [&](int step, int row_tile) {
    return lane_cells(size, slice, step, row_tile * kRowTile + lane % 4 * 2, unit, unit_exists);
  };
  // Publishes the state before `step`. `h` is the state after step - 1, `next` the cells in `step`.
  const auto publish = [&](int step, int row_tile, const LaneCells& next, const float (&h)[2]) {
    IO value[2];
    for (int r = 0; r < 2; ++r) {
      const Coordinates& at = next.at[r];
      const bool first = next.exists[r] && at.active && at.first;
      const float before = first ? widen(static_cast<const IO*>(args.h0)[at.row * H + unit]) : h[r];
      value[r] = as_operand<IO>(next.exists[r] && at.active && !at.enters ? before : 0.0f);
    }
    ring.publish(step, row_tile, first_unit, value[0], value[1]);
  };

  for (int chunk = 0; has_tile && chunk < chunks; ++chunk) {
    const int row_tile = chunk * plan.row_tiles_per_chunk + chunk_tile;
    const LaneCells cells = cells_at(0, row_tile);
    for (int r = 0; r < 2; ++r) {
      const int64_t state = cells.at[r].row * H + unit;
      if (!cells.exists[r]) continue;
      static_cast<IO*>(args.h_n)[state] = static_cast<const IO*>(args.h0)[state];
      static_cast<IO*>(args.c_n)[state] = static_cast<const IO*>(args.c0)[state];
    }
    publish(0, row_tile, cells, {0, 0});
  }
  block_barrier();
  if (thread_index() == 0) ring.signal(slice.member, chunks);

  // The units whose state this warp multiplies, and the blocks that publish it.
  const int begin = warp * Traits::kWarpTerms,
            end = begin + Traits::kWarpTerms < H ? begin + Traits::kWarpTerms : static_cast<int>(H);
  const int first_producer = begin / (octets * kUnitOctet), last_producer = (end - 1) / (octets * kUnitOctet);

  for (int step = 0; step < steps; ++step) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int first_tile = chunk * plan.row_tiles_per_chunk, row_tile = first_tile + chunk_tile;
      // Loads from memory are issued before the wait; what they read is used only after the products.
      const LaneCells cells = has_tile ? cells_at(step, row_tile) : LaneCells{},
                      next = has_tile ? cells_at(step + 1, row_tile) : LaneCells{};
      float gates[2][4] = {};
      load_input_gates(args, cells, unit, gates);

      const auto count = static_cast<uint32_t>(step * chunks + chunk + 1);
      if (begin < end) ring.wait(first_producer, last_producer, count);
      multiply_state(args, ring, weights, partials, step, first_tile);
      block_barrier();

      float h[2] = {}, c_t[2] = {};
      if (has_tile) {
        update_cells<IO>(args, partials, chunk_tile * plan.weight_tiles + 2 * octet, cell_states, chunk, bias,
                         cells, unit, gates, c_t, h);
        if (step + 1 < steps) publish(step + 1, row_tile, next, h);
        if (step > 0) ring.clear(step - 1, row_tile, first_unit);
        cell_states[chunk * kThreads + thread_index()] = {c_t[0], c_t[1]};
      }
      block_barrier();
      if (thread_index() == 0 && step + 1 < steps)
        ring.signal(slice.member, count + static_cast<uint32_t>(chunks));
      if (chunk + 1 == chunks) ring.fence_after(step);

      write_outputs<IO>(args, cells, unit, gates, c_t, h);  // no block waits for it
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
