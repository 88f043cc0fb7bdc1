// All steps of a layer backward in one launch. A block holds the columns of W_hh for its units; the blocks
// exchange the gradients of the gates, which are the state here.
#pragma once

#include "persistent.cuh"

namespace fusedlstm::cuda {
namespace {

// Traits: PersistentTraits, and the stages in which k-blocks of the state are loaded, each while the one
// before is multiplied.
template <class Traits>
constexpr int kStages = Traits::kKBlocks > 16  ? 4
                        : Traits::kKBlocks > 8 ? 2
                                               : 1;
template <class Traits>
constexpr int kCount = Traits::kKBlocks / kStages<Traits>;
template <class Traits>
constexpr int kBuffers = kStages<Traits> > 1 ? 2 : 1;
constexpr int kTileUnits = units_of_tile(Pass::backward);

// Kernel

template <class IO>
__device__ __forceinline__ void store_gates(void* base, int64_t row, int64_t hidden, int64_t unit,
                                            const Gates<float>& gates) {
  IO* const to = static_cast<IO*>(base) + 4 * row * hidden + unit;
  narrow(gates.i, to[0]);
  narrow(gates.f, to[hidden]);
  narrow(gates.g, to[2 * hidden]);
  narrow(gates.o, to[3 * hidden]);
}

// A cell as the forward pass left it, and the gradients that reach it from outside.
template <class IO>
struct Cell {
  Coordinates at;
  bool exists;
  Gates<float> gates;
  float c_t, c_before, grad_c_t;
  IO grad_y;
};

// A warp's tile of cells: the octet of the block's units and the row tile of the chunk; -1 for none, since
// the exchange has no memory for octets beyond the last unit.
struct CellTile {
  int octet, row;
};

// The results of rows without steps, and grad_gates_first of rows whose first step a reset precedes.
template <class IO, class TileAt>
__device__ __forceinline__ void init_results(const PersistentBackwardArgs& args, const Slice& slice,
                                             const TileAt& tile_at, int chunks, int first_unit) {
  const PersistentPlan& plan = args.plan;
  const int64_t H = args.size.hidden;
  const int lane = lane_index();
  for (int chunk = 0; chunk < chunks; ++chunk)
    for (int update_pass = 0; update_pass < plan.update_passes; ++update_pass) {
      const CellTile tile = tile_at(update_pass);
      const int64_t unit = first_unit + tile.octet * kUnitOctet + lane / 4;
      for (int r = 0; r < 2; ++r) {
        const int row = (chunk * plan.row_tiles_per_chunk + tile.row) * kRowTile + lane % 4 * 2 + r;
        if (tile.row < 0 || row >= slice.row_count || unit >= H) continue;
        const int64_t n = slice.d * args.size.batch + slice.first_row + row;
        const auto* const grad_c_n = static_cast<const IO*>(args.grad_c_n);
        static_cast<IO*>(args.grad_c0)[n * H + unit] = grad_c_n ? grad_c_n[n * H + unit] : IO{};
        store_gates<IO>(args.grad_gates_first, n, H, unit, Gates<float>{});
      }
    }
}

// Loads one cell and uses nothing of it.
template <class IO>
__device__ __forceinline__ Cell<IO> load_cell(const PersistentBackwardArgs& args, const Slice& slice,
                                              int step, int row, int64_t unit) {
  const KernelSizes& size = args.size;
  const int64_t H = size.hidden;
  Cell<IO> cell{};
  cell.exists = row < slice.row_count && unit < H;
  if (!cell.exists) return cell;
  const Coordinates at = cell_at(size, step, static_cast<unsigned>(slice.d),
                                 static_cast<unsigned>(slice.first_row + row), static_cast<unsigned>(unit));
  cell.at = at;
  if (!at.active) return cell;
  const int64_t here = at.sequence_row(size, at.t) * H;
  const auto* const gate = static_cast<const float*>(args.gates) + 4 * here + unit;
  const auto* const c_t = static_cast<const float*>(args.cells) + unit;
  cell.gates = {gate[0], gate[H], gate[2 * H], gate[3 * H]};
  cell.c_t = c_t[here];
  if (!at.first && !at.enters) cell.c_before = c_t[at.sequence_row(size, at.d ? at.t + 1 : at.t - 1) * H];
  if (args.grad_y) cell.grad_y = static_cast<const IO*>(args.grad_y)[here + unit];
  if (args.grad_cells) cell.grad_c_t = static_cast<const float*>(args.grad_cells)[here + unit];
  return cell;
}

// The gradient of a cell's gates, zero in a row that takes no part. grad_h_t is passed back by the next
// step; grad_c_t, of the cell state after the step, is replaced by that before it.
template <class IO>
__device__ __forceinline__ Gates<float> update_cell(const PersistentBackwardArgs& args, const Cell<IO>& cell,
                                                    float grad_h_t, float& grad_c_t) {
  const Coordinates& at = cell.at;
  if (!at.active) return {};
  const int64_t state = at.row * args.size.hidden + at.unit;
  const float c_before =
      at.first && !at.enters ? widen(static_cast<const IO*>(args.c0)[state]) : cell.c_before;
  if (at.last) {
    grad_h_t = args.grad_h_n ? widen(static_cast<const IO*>(args.grad_h_n)[state]) : 0.0f;
    grad_c_t = args.grad_c_n ? widen(static_cast<const IO*>(args.grad_c_n)[state]) : 0.0f;
  } else if (!at.continues) {
    grad_h_t = 0;  // of zeros: NaN if a weight is not finite
  }
  grad_h_t += widen(cell.grad_y), grad_c_t += cell.grad_c_t;
  const CellGradient<float> grad =
      cell_gradient<FastMath>(cell.gates, c_before, cell.c_t, grad_h_t, grad_c_t);
  grad_c_t = at.enters ? 0.0f : grad.c_prev;
  return grad.pre;
}

// Updates two cells of a lane: `own` are the gradients of their gates, `published` what the step before
// takes.
template <class IO>
__device__ __forceinline__ void update_cells(const PersistentBackwardArgs& args, const Cell<IO> (&cells)[2],
                                             const float2& grad_h_t, float (&grad_c_t)[2],
                                             Gates<float> (&own)[2], IO (&published)[4][2]) {
  for (int r = 0; r < 2; ++r) {
    if (!cells[r].exists) continue;
    const Coordinates& at = cells[r].at;
    own[r] = update_cell<IO>(args, cells[r], r ? grad_h_t.y : grad_h_t.x, grad_c_t[r]);
    if (!at.active || at.enters) continue;
    published[0][r] = as_operand<IO>(own[r].i), published[1][r] = as_operand<IO>(own[r].f);
    published[2][r] = as_operand<IO>(own[r].g), published[3][r] = as_operand<IO>(own[r].o);
  }
}

__device__ __forceinline__ void add_to_bias(float* sums, const Gates<float> (&own)[2]) {
  sums[0] += own[0].i + own[1].i, sums[kThreads] += own[0].f + own[1].f;
  sums[2 * kThreads] += own[0].g + own[1].g, sums[3 * kThreads] += own[0].o + own[1].o;
}

template <class IO>
__device__ __forceinline__ void write_outputs(const PersistentBackwardArgs& args, const KernelSizes& size,
                                              const int64_t& H, const Cell<IO> (&cells)[2],
                                              const Gates<float> (&own)[2], const float (&grad_c_t)[2]) {
  for (int r = 0; r < 2; ++r) {
    if (!cells[r].exists || !cells[r].at.has_entry) continue;
    const Coordinates& at = cells[r].at;
    store_gates<IO>(args.grad_gates, at.sequence_row(size, at.t), H, at.unit, own[r]);
    if (!at.active || !at.first) continue;
    narrow(grad_c_t[r], static_cast<IO*>(args.grad_c0)[at.row * H + at.unit]);
    if (!at.enters) store_gates<IO>(args.grad_gates_first, at.row, H, at.unit, own[r]);
  }
}

// grad_bias: adds up, for each gate and unit, the sums of the four lanes of every warp that had the unit.
__device__ __forceinline__ void sum_bias(const PersistentBackwardArgs& args, const Slice& slice,
                                         const float* bias_sums, int first_unit) {
  const PersistentPlan& plan = args.plan;
  const int64_t H = args.size.hidden;
  for (int sum = static_cast<int>(thread_index()); sum < plan.weight_tiles * kTileUnits * 4;
       sum += kThreads) {
    const int gate = sum % 4, in_block = sum / 4;
    const int unit = first_unit + in_block;
    if (unit >= H) continue;
    float total = 0;
    for (int row = 0; row < plan.row_tiles_per_chunk; ++row) {
      const int tile = row * 2 * plan.weight_tiles + in_block / kUnitOctet;
      const int first_lane = tile % kPersistentWarps * kLanes;
      const float* const of_gate = bias_sums + (tile / kPersistentWarps * 4 + gate) * kThreads + first_lane +
                                   in_block % kUnitOctet * 4;
      for (int q = 0; q < 4; ++q) total += of_gate[q];
    }
    args.grad_bias[((int64_t{slice.d} * plan.groups + slice.group) * 4 + gate) * H + unit] = total;
  }
}

// The blocks that publish terms [begin, end) of the state, which a warp multiplies.
struct Producers {
  int first, last;
  bool any;  // false for a warp whose terms are all padding

  __device__ __forceinline__ Producers(const PersistentPlan& plan, int64_t H, int begin, int end) {
    const int first_unit = begin / kOctetTerms * kUnitOctet,
              last_unit = (end - 1) / kOctetTerms * kUnitOctet + kUnitOctet - 1,
              end_unit = last_unit < H ? last_unit + 1 : static_cast<int>(H);
    any = first_unit < end_unit;
    first = first_unit / (plan.weight_tiles * kTileUnits);
    last = (end_unit - 1) / (plan.weight_tiles * kTileUnits);
  }
};

// Multiplies a chunk of a state by the block's weights.
template <class Traits>
__device__ __forceinline__ void multiply_state(const PersistentBackwardArgs& args, const Ring<Traits>& ring,
                                               const Weights<Traits>& weights, const Partials& partials,
                                               uint4 (&buffers)[kBuffers<Traits>][1][kCount<Traits>],
                                               int done, int first_tile) {
  const PersistentPlan& plan = args.plan;
  ring.template load<0>(done - 1, first_tile, buffers[0]);
  const auto multiply = [&]<int stage>(int tile) {
    constexpr int kFirst = stage * kCount<Traits>;
    auto& current = buffers[kStages<Traits> > 1 ? stage % 2 : 0];
    if constexpr (kStages<Traits> > 1) {
      constexpr int kNext = (stage + 1) % kStages<Traits>;
      if (const int next = tile + (kNext == 0); next < plan.row_tiles_per_chunk)
        ring.template load<kNext * kCount<Traits>>(done - 1, first_tile + next, buffers[kNext % 2]);
    }
    ring.template poll<kFirst>(done - 1, first_tile + tile, current);
    weights.template multiply<kFirst>(current, [&](int weight_tile, int, const float (&sum)[4]) {
      const int tile_product = tile * plan.weight_tiles + weight_tile;
      if constexpr (kFirst == 0) {
        partials.put(tile_product, sum);
      } else {
        partials.add(tile_product, sum);
      }
    });
  };
  for (int tile = 0; tile < plan.row_tiles_per_chunk; ++tile) {
    multiply.template operator()<0>(tile);
    if constexpr (kStages<Traits> > 1) multiply.template operator()<1>(tile);
    if constexpr (kStages<Traits> > 2) {
      multiply.template operator()<2>(tile);
      multiply.template operator()<3>(tile);
    }
    if (kStages<Traits> == 1 && tile + 1 < plan.row_tiles_per_chunk)
      ring.template load<0>(done - 1, first_tile + tile + 1, buffers[0]);
  }
}

template <class Traits>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_backward_persistent_kernel(const PersistentBackwardArgs args) {
  using IO = typename Traits::IO;
  const KernelSizes& size = args.size;
  const PersistentPlan& plan = args.plan;
  const int64_t H = size.hidden;
  const int steps = static_cast<int>(size.steps);
  const int thread = static_cast<int>(thread_index()), warp = thread / kLanes, lane = thread % kLanes;
  const int chunks = plan.rows / kRowTile / plan.row_tiles_per_chunk;
  const Slice slice(size, plan);
  const Ring<Traits> ring(args.exchange, slice, plan);

  using Layout = SharedLayout<int>;
  const Partials partials(&shared_memory<float4>());
  auto* const cell_gradients = reinterpret_cast<float2*>(
      &shared_memory<float4>() + Layout::partials(plan.row_tiles_per_chunk, plan.weight_tiles));
  auto* const bias_sums =
      reinterpret_cast<float*>(cell_gradients + chunks * plan.update_passes * Layout::kStatesOfPass);
  for (int i = 0; i < plan.update_passes * 4; ++i) bias_sums[i * kThreads + thread_index()] = 0;
  const int first_unit = slice.member * plan.weight_tiles * kTileUnits;

  // In each chunk a warp updates a tile of cells in each of one or two passes: an octet of units in a row
  // tile. A lane has one unit for two neighbouring rows.
  const auto tile_of = [&](int update_pass) {
    const int index = update_pass * kPersistentWarps + warp, octets = 2 * plan.weight_tiles;
    const CellTile tile{index % octets, index / octets};
    return tile.row < plan.row_tiles_per_chunk && first_unit + tile.octet * kUnitOctet < H ? tile
                                                                                           : CellTile{0, -1};
  };
  const CellTile in_first = tile_of(0), in_second = tile_of(1);
  const auto tile_at = [&](int update_pass) { return update_pass == 0 ? in_first : in_second; };
  const auto load = [&](int step, int first_tile, int update_pass, Cell<IO>(&cells)[2]) {
    const CellTile tile = tile_at(update_pass);
    for (int r = 0; r < 2; ++r) {
      const int row = (first_tile + tile.row) * kRowTile + lane % 4 * 2 + r;
      const int unit = first_unit + tile.octet * kUnitOctet + lane / 4;
      cells[r] = tile.row >= 0 ? load_cell<IO>(args, slice, step, row, unit) : Cell<IO>{};
    }
  };

  init_results<IO>(args, slice, tile_at, chunks, first_unit);
  const Weights<Traits> weights(args.weights, slice.d * plan.members + slice.member, plan.weight_tiles,
                                bias_sums + Layout::grad_bias(plan.update_passes));

  const Producers producers(plan, H, warp * Traits::kWarpTerms, (warp + 1) * Traits::kWarpTerms);

  for (int done = 0; done < steps; ++done) {  // also the number of the state that the step publishes
    const int step = steps - 1 - done;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int first_tile = chunk * plan.row_tiles_per_chunk;
      const auto count =
          static_cast<uint32_t>(done * chunks + chunk + 1);  // of chunks, when this one is done
      Cell<IO> cells[2];
      load(step, first_tile, 0, cells);
      if (done > 0) {
        if (producers.any) ring.wait(producers.first, producers.last, count - static_cast<uint32_t>(chunks));
        uint4 buffers[kBuffers<Traits>][1][kCount<Traits>];
        multiply_state(args, ring, weights, partials, buffers, done, first_tile);
      }
      block_barrier();

#pragma unroll 1
      for (int update_pass = 0; update_pass < plan.update_passes; ++update_pass) {
        const CellTile tile = tile_at(update_pass);
        if (update_pass > 0) load(step, first_tile, update_pass, cells);
        if (tile.row >= 0) {
          const int row_tile = first_tile + tile.row;
          float2 grad_h_t{0, 0};
          if (done > 0)
            grad_h_t = partials.total(tile.row * plan.weight_tiles + tile.octet / 2, tile.octet % 2);
          float2* const own_gradient =
              cell_gradients + (chunk * plan.update_passes + update_pass) * kThreads + thread_index();
          float grad_c_t[2] = {own_gradient->x, own_gradient->y};
          Gates<float> own[2] = {};
          IO published[4][2] = {};
          update_cells(args, cells, grad_h_t, grad_c_t, own, published);
          for (int gate = 0; gate < 4; ++gate) {
            const int term = first_unit * 4 + tile.octet * kOctetTerms + gate * kUnitOctet;
            if (step > 0) ring.publish(done, row_tile, term, published[gate][0], published[gate][1]);
            if (done > 1) ring.clear(done - 2, row_tile, term);
          }
          *own_gradient = {grad_c_t[0], grad_c_t[1]};
          add_to_bias(bias_sums + update_pass * 4 * kThreads + thread_index(), own);
          write_outputs(args, size, H, cells, own, grad_c_t);
        }
      }
      block_barrier();
      if (thread_index() == 0 && step > 0) ring.signal(slice.member, count);
      if (chunk + 1 == chunks) ring.fence_after(done);
    }
  }

  block_barrier();
  sum_bias(args, slice, bias_sums, first_unit);
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
