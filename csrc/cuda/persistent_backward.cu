// All steps of a layer backward in one launch. A block holds the columns of W_hh for its units, which take
// part in all gates; what blocks tell each other are the gradients of the gates.
#include "persistent.cuh"
#include "persistent.h"

namespace fusedlstm::cuda {
namespace {

constexpr int kTileUnits = 2 * kOctet;

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
  Place at;
  bool exists;
  Gates<float> gates;
  float c, c_before, grad_cell;
  IO grad_y;
};

// Asks memory for one cell, looks at nothing.
template <class IO>
__device__ __forceinline__ Cell<IO> load_cell(const PersistentBackwardArgs& args, const Slice& slice,
                                              int step, int row, int64_t unit) {
  const Sizes& size = args.size;
  const int64_t H = size.hidden;
  Cell<IO> cell{};
  cell.exists = row < slice.row_count && unit < H;
  if (!cell.exists) return cell;
  const Place at = place(size, step, static_cast<unsigned>(slice.d),
                         static_cast<unsigned>(slice.first_row + row), static_cast<unsigned>(unit));
  cell.at = at;
  if (!at.active) return cell;
  const int64_t here = at.sequence_row(size, at.t) * H;
  const auto* const gate = static_cast<const float*>(args.gates) + 4 * here + unit;
  const auto* const c = static_cast<const float*>(args.cell) + unit;
  cell.gates = {gate[0], gate[H], gate[2 * H], gate[3 * H]};
  cell.c = c[here];
  if (!at.first && !at.enters) cell.c_before = c[at.sequence_row(size, at.d ? at.t + 1 : at.t - 1) * H];
  if (args.grad_y) cell.grad_y = static_cast<const IO*>(args.grad_y)[here + unit];
  if (args.grad_cell) cell.grad_cell = static_cast<const float*>(args.grad_cell)[here + unit];
  return cell;
}

// The gradient of a cell's gates, zero in a row that takes no part. from_next is the state's gradient from
// the step that follows; grad_c, that of the cell after the step, becomes that before it.
template <class IO>
__device__ __forceinline__ Gates<float> update_cell(const PersistentBackwardArgs& args, const Cell<IO>& cell,
                                                    float from_next, float& grad_c) {
  const Place& at = cell.at;
  if (!at.active) return {};
  const int64_t state = at.row * args.size.hidden + at.unit;
  const float c_before =
      at.first && !at.enters ? widen(static_cast<const IO*>(args.c0)[state]) : cell.c_before;
  float grad_h = from_next;
  if (at.last) {
    grad_h = args.grad_h_n ? widen(static_cast<const IO*>(args.grad_h_n)[state]) : 0.0f;
    grad_c = args.grad_c_n ? widen(static_cast<const IO*>(args.grad_c_n)[state]) : 0.0f;
  }
  grad_h += widen(cell.grad_y), grad_c += cell.grad_cell;
  const CellGradient<float> grad = cell_gradient<FastMath>(cell.gates, c_before, cell.c, grad_h, grad_c);
  grad_c = at.enters ? 0.0f : grad.c_prev;
  return grad.pre;
}

template <class IO, int kPieces, Signal signal>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_backward_persistent_kernel(const PersistentBackwardArgs args) {
  const Sizes& size = args.size;
  const Persistent& plan = args.plan;
  const int64_t H = size.hidden;
  const int steps = static_cast<int>(size.steps);
  const int warp = static_cast<int>(thread_index()) / kLanes,
            lane = static_cast<int>(thread_index()) % kLanes;
  const int chunks = plan.rows / kTileRows / plan.chunk;
  const Slice slice(size, plan);
  const Ring<IO, kPieces, signal> ring(args.exchange, slice, plan);

  const Partials partials(&shared_memory<float4>());
  // [chunk][round][thread], and gradients of the biases so far, [round][gate][thread]
  auto* const grad_c_kept =
      reinterpret_cast<float2*>(&shared_memory<float4>() + plan.chunk * plan.tiles * kThreads);
  auto* const grad_bias_kept = reinterpret_cast<float*>(grad_c_kept + chunks * plan.rounds * kThreads);
  for (int i = 0; i < plan.rounds * 4; ++i) grad_bias_kept[i * kThreads + thread_index()] = 0;
  const int first_unit = slice.member * plan.tiles * kTileUnits;

  // In each chunk a warp finishes an item in each of one or two rounds: eight units for one tile of the
  // batch. A lane has one unit for two neighbouring rows.
  struct Item {
    int octet, tile;  // of the block's units; of the chunk's rows; -1: none, as beyond the exchange
  };
  const auto item_of = [&](int round) {
    const int index = round * kPersistentWarps + warp, octets = 2 * plan.tiles;
    const Item item{index % octets, index / octets};
    return item.tile < plan.chunk && first_unit + item.octet * kOctet < H ? item : Item{0, -1};
  };
  const Item in_first = item_of(0), in_second = item_of(1);
  const auto item_at = [&](int round) { return round == 0 ? in_first : in_second; };
  const auto load = [&](int step, int first_tile, int round, Cell<IO>(&cells)[2]) {
    const Item item = item_at(round);
    for (int r = 0; r < 2; ++r) {
      const int row = (first_tile + item.tile) * kTileRows + lane % 4 * 2 + r;
      const int unit = first_unit + item.octet * kOctet + lane / 4;
      cells[r] = item.tile >= 0 ? load_cell<IO>(args, slice, step, row, unit) : Cell<IO>{};
    }
  };

  // What remains of rows of no steps, and of those that h0 does not reach.
  for (int chunk = 0; chunk < chunks; ++chunk)
    for (int round = 0; round < plan.rounds; ++round) {
      const Item item = item_at(round);
      const int64_t unit = first_unit + item.octet * kOctet + lane / 4;
      for (int r = 0; r < 2; ++r) {
        const int row = (chunk * plan.chunk + item.tile) * kTileRows + lane % 4 * 2 + r;
        if (item.tile < 0 || row >= slice.row_count || unit >= H) continue;
        const int64_t n = slice.d * size.batch + slice.first_row + row;
        const auto* const grad_c_n = static_cast<const IO*>(args.grad_c_n);
        static_cast<IO*>(args.grad_c0)[n * H + unit] = grad_c_n ? grad_c_n[n * H + unit] : IO{};
        store_gates<IO>(args.first_gates, n, H, unit, Gates<float>{});
      }
    }

  const Weights<IO, kPieces, kHeldFragments<Pass::backward, kPieces>> weights(
      args.weights, slice.d * plan.members + slice.member, plan.tiles,
      grad_bias_kept + plan.rounds * 4 * kThreads);

  constexpr int kTerms = Ring<IO, kPieces, signal>::kRowTerms / kPersistentWarps;
  const int begin = warp * kTerms / kOctetTerms * kOctet;
  const int last = ((warp + 1) * kTerms - 1) / kOctetTerms * kOctet + kOctet - 1;
  const int end = last < H ? last + 1 : static_cast<int>(H);
  const int first_teller = begin / (plan.tiles * kTileUnits),
            last_teller = (end - 1) / (plan.tiles * kTileUnits);

  for (int done = 0; done < steps; ++done) {  // also the number of what the step tells
    const int step = steps - 1 - done;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int first_tile = chunk * plan.chunk;
      const auto count =
          static_cast<uint32_t>(done * chunks + chunk + 1);  // announced when this chunk is done
      Cell<IO> cells[2];
      load(step, first_tile, 0, cells);
      if (done > 0) {
        if (begin < end) ring.await(first_teller, last_teller, count - static_cast<uint32_t>(chunks));
        // Wide states come in slices, each asked for while the one before is multiplied.
        constexpr int kSlices = kPieces > 16 ? 4 : kPieces > 8 ? 2 : 1, kSlice = kPieces / kSlices;
        uint4 states[kSlices > 1 ? 2 : 1][1][kSlice];
        ring.template fetch<0>(done - 1, first_tile, states[0]);
        const auto multiply = [&]<int slice_index>(int part) {
          constexpr int kFirst = slice_index * kSlice;
          auto& state = states[kSlices > 1 ? slice_index % 2 : 0];
          if constexpr (kSlices > 1) {
            constexpr int kNext = (slice_index + 1) % kSlices;
            if (const int next = part + (kNext == 0); next < plan.chunk)
              ring.template fetch<kNext * kSlice>(done - 1, first_tile + next, states[kNext % 2]);
          }
          ring.template confirm<kFirst>(done - 1, first_tile + part, state);
          weights.template multiply<kFirst>(state, [&](int weight_tile, int, const float (&sum)[4]) {
            const int item = part * plan.tiles + weight_tile;
            if constexpr (kFirst == 0) {
              partials.put(item, sum);
            } else {
              partials.add(item, sum);
            }
          });
        };
        for (int part = 0; part < plan.chunk; ++part) {
          multiply.template operator()<0>(part);
          if constexpr (kSlices > 1) multiply.template operator()<1>(part);
          if constexpr (kSlices > 2) {
            multiply.template operator()<2>(part);
            multiply.template operator()<3>(part);
          }
          if (kSlices == 1 && part + 1 < plan.chunk)
            ring.template fetch<0>(done - 1, first_tile + part + 1, states[0]);
        }
      }
      block_barrier();

#pragma unroll 1
      for (int round = 0; round < plan.rounds; ++round) {
        const Item item = item_at(round);
        if (round > 0) load(step, first_tile, round, cells);
        if (item.tile >= 0) {
          const int tile = first_tile + item.tile;
          float2 from_next{0, 0};
          if (done > 0) from_next = partials.total(item.tile * plan.tiles + item.octet / 2, item.octet % 2);
          float2* const kept = grad_c_kept + (chunk * plan.rounds + round) * kThreads + thread_index();
          float grad_c[2] = {kept->x, kept->y};
          Gates<float> own[2] = {};
          IO told_gates[4][2] = {};
          for (int r = 0; r < 2; ++r) {
            if (!cells[r].exists) continue;
            const Place& at = cells[r].at;
            own[r] = update_cell<IO>(args, cells[r], r ? from_next.y : from_next.x, grad_c[r]);
            if (!at.active || at.enters) continue;
            told_gates[0][r] = told<IO>(own[r].i), told_gates[1][r] = told<IO>(own[r].f);
            told_gates[2][r] = told<IO>(own[r].g), told_gates[3][r] = told<IO>(own[r].o);
          }
          for (int gate = 0; gate < 4; ++gate) {
            const int term = first_unit * 4 + item.octet * kOctetTerms + gate * kOctet;
            if (step > 0) ring.tell(done, tile, term, told_gates[gate][0], told_gates[gate][1]);
            if (done > 1) ring.forget(done - 2, tile, term);
          }
          *kept = {grad_c[0], grad_c[1]};
          float* const grad_bias = grad_bias_kept + round * 4 * kThreads + thread_index();
          grad_bias[0] += own[0].i + own[1].i, grad_bias[kThreads] += own[0].f + own[1].f;
          grad_bias[2 * kThreads] += own[0].g + own[1].g, grad_bias[3 * kThreads] += own[0].o + own[1].o;
          for (int r = 0; r < 2; ++r) {
            if (!cells[r].exists) continue;
            const Place& at = cells[r].at;
            store_gates<IO>(args.grad_gates, at.sequence_row(size, at.t), H, at.unit, own[r]);
            if (!at.active || !at.first) continue;
            narrow(grad_c[r], static_cast<IO*>(args.grad_c0)[at.row * H + at.unit]);
            if (!at.enters) store_gates<IO>(args.first_gates, at.row, H, at.unit, own[r]);
          }
        }
      }
      block_barrier();
      if (thread_index() == 0 && step > 0) ring.announce(slice.member, count);
      if (chunk + 1 == chunks) ring.settle(done);
    }
  }

  // A gate of a unit was summed up by four lanes of each warp that has had its item.
  block_barrier();
  for (int sum = static_cast<int>(thread_index()); sum < plan.tiles * kTileUnits * 4; sum += kThreads) {
    const int gate = sum % 4, in_block = sum / 4;
    const int unit = first_unit + in_block;
    if (unit >= H) continue;
    float total = 0;
    for (int part = 0; part < plan.chunk; ++part) {
      const int item = part * 2 * plan.tiles + in_block / kOctet, thread = item % kPersistentWarps * kLanes;
      const float* const of_gate =
          grad_bias_kept + (item / kPersistentWarps * 4 + gate) * kThreads + thread + in_block % kOctet * 4;
      for (int q = 0; q < 4; ++q) total += of_gate[q];
    }
    args.grad_bias[((int64_t{slice.d} * plan.groups + slice.group) * 4 + gate) * H + unit] = total;
  }
}

}  // namespace

bool backward_persistent(const PersistentBackwardArgs& args, Type io, Stream stream) {
  bool launched = false;
  with_kernel<1, 2, 4, 8, 12, 16, 24, 32>(io, args.plan, [&]<class IO, int kPieces, Signal signal>() {
    launched = launch_whole("backward_persistent", &lstm_backward_persistent_kernel<IO, kPieces, signal>,
                            args, stream);
  });
  return launched;
}

}  // namespace fusedlstm::cuda
