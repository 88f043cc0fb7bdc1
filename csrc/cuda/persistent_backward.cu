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

// One cell: the gradient of its gates, zero in a row that takes no part. from_next is the state's gradient
// from the step that follows; grad_c, that of the cell after the step, becomes that before it.
template <class IO>
__device__ __forceinline__ Gates<float> update_cell(const PersistentBackwardArgs& args, const Place& at,
                                                    float from_next, float& grad_c) {
  if (!at.active) return {};
  const Sizes& size = args.size;
  const int64_t H = size.hidden, sequence = at.sequence_row(size, at.t);
  const int64_t state = at.row * H + at.unit, here = sequence * H + at.unit;
  const auto* const gate = static_cast<const float*>(args.gates) + 4 * sequence * H + at.unit;
  const auto* const cell = static_cast<const float*>(args.cell);
  float c_before = 0;
  if (at.first && !at.enters) {
    c_before = widen(static_cast<const IO*>(args.c0)[state]);
  } else if (!at.enters) {
    c_before = cell[at.sequence_row(size, at.d ? at.t + 1 : at.t - 1) * H + at.unit];
  }
  float grad_h = from_next;
  if (at.last) {
    grad_h = args.grad_h_n ? widen(static_cast<const IO*>(args.grad_h_n)[state]) : 0.0f;
    grad_c = static_cast<const float*>(args.grad_c)[state];
  }
  if (args.grad_y) grad_h += widen(static_cast<const IO*>(args.grad_y)[here]);
  if (args.grad_cell) grad_c += static_cast<const float*>(args.grad_cell)[here];
  const CellGradient<float> grad = cell_gradient<AccurateMath>(
      Gates<float>{gate[0], gate[H], gate[2 * H], gate[3 * H]}, c_before, cell[here], grad_h, grad_c);
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
  // [chunk][octet][thread], and gradients of the biases so far, [octet][gate][thread]
  auto* const grad_c_kept =
      reinterpret_cast<float2*>(&shared_memory<float4>() + plan.chunk * plan.tiles * kThreads);
  auto* const grad_bias_kept = reinterpret_cast<float*>(grad_c_kept + 2 * chunks * kThreads);
  for (int i = 0; i < 2 * 4; ++i) grad_bias_kept[i * kThreads + thread_index()] = 0;
  const Weights<IO, kPieces> weights(args.weights, slice.d * plan.members + slice.member, plan.tiles,
                                     grad_bias_kept + 2 * 4 * kThreads);
  const int first_unit = slice.member * plan.tiles * kTileUnits;

  // In each chunk this warp finishes one item: a tile of units for one tile of the batch. A lane has the
  // units g and g + 8 for two neighbouring rows.
  const bool works = warp < plan.tiles * plan.chunk;
  const int unit_tile = warp % plan.tiles, item_tile = warp / plan.tiles;
  const int tile_unit = first_unit + unit_tile * kTileUnits;

  constexpr int kTerms = Ring<IO, kPieces, signal>::kRowTerms / kPersistentWarps;
  const int begin = warp * kTerms / kOctetTerms * kOctet;
  const int last = ((warp + 1) * kTerms - 1) / kOctetTerms * kOctet + kOctet - 1;
  const int end = last < H ? last + 1 : static_cast<int>(H);
  const int first_teller = begin / (plan.tiles * kTileUnits),
            last_teller = (end - 1) / (plan.tiles * kTileUnits);

  for (int done = 0; done < steps; ++done) {  // also the number of what the step tells
    const int step = steps - 1 - done;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int first_tile = chunk * plan.chunk, tile = first_tile + item_tile;
      const auto count =
          static_cast<uint32_t>(done * chunks + chunk + 1);  // announced when this chunk is done
      if (done > 0) {
        if (begin < end) ring.await(first_teller, last_teller, count - static_cast<uint32_t>(chunks));
        for (int part = 0; part < plan.chunk; ++part) {
          uint4 state[kPieces];
          ring.read(done - 1, first_tile + part, state);
          weights.multiply(state, [&](int weight_tile, const float (&sum)[4]) {
            partials.put(part * plan.tiles + weight_tile, sum);
          });
        }
      }
      block_barrier();

      if (works) {
        float4 sum{0, 0, 0, 0};
        if (done > 0) sum = partials.total(item_tile * plan.tiles + unit_tile);
#pragma unroll 1
        for (int octet = 0; octet < 2; ++octet) {
          const int first = tile_unit + octet * kOctet;
          if (first >= H) break;  // no terms of the exchange are theirs
          const float from_next[2] = {octet ? sum.z : sum.x, octet ? sum.w : sum.y};
          float2* const kept = grad_c_kept + (2 * chunk + octet) * kThreads + thread_index();
          float grad_c[2] = {kept->x, kept->y};
          IO told_gates[4][2] = {};
          for (int r = 0; r < 2; ++r) {
            const int row = tile * kTileRows + lane % 4 * 2 + r;
            const int64_t unit = first + lane / 4;
            if (row >= slice.row_count || unit >= H) continue;
            const auto n = static_cast<unsigned>(slice.d * size.batch + slice.first_row + row);
            const Place at = place(size, step, n, static_cast<unsigned>(unit));
            const Gates<float> grad = update_cell<IO>(args, at, from_next[r], grad_c[r]);
            store_gates<IO>(args.grad_gates, at.sequence_row(size, at.t), H, unit, grad);
            if (!at.active) continue;
            float* const grad_bias = grad_bias_kept + octet * 4 * kThreads + thread_index();
            grad_bias[0] += grad.i, grad_bias[kThreads] += grad.f;
            grad_bias[2 * kThreads] += grad.g, grad_bias[3 * kThreads] += grad.o;
            if (at.first) static_cast<float*>(args.grad_c)[at.row * H + unit] = grad_c[r];
            if (at.enters) continue;
            if (at.first) store_gates<IO>(args.first_gates, at.row, H, unit, grad);
            told_gates[0][r] = told<IO>(grad.i), told_gates[1][r] = told<IO>(grad.f);
            told_gates[2][r] = told<IO>(grad.g), told_gates[3][r] = told<IO>(grad.o);
          }
          *kept = {grad_c[0], grad_c[1]};
          for (int gate = 0; gate < 4; ++gate) {
            const int term = first / kOctet * kOctetTerms + gate * kOctet;
            if (step > 0) ring.tell(done, tile, term, told_gates[gate][0], told_gates[gate][1]);
            if (done > 1) ring.forget(done - 2, tile, term);
          }
        }
      }
      block_barrier();
      if (thread_index() == 0 && step > 0) ring.announce(slice.member, count);
      ring.settle();
    }
  }

  // A gate of a unit was summed up by four lanes of each warp that has had its tile.
  block_barrier();
  for (int sum = static_cast<int>(thread_index()); sum < plan.tiles * kTileUnits * 4; sum += kThreads) {
    const int gate = sum % 4, in_block = sum / 4, tile = in_block / kTileUnits;
    const int unit = first_unit + in_block, octet = in_block / kOctet % 2;
    if (unit >= H) continue;
    float total = 0;
    for (int part = 0; part < plan.chunk; ++part)
      for (int q = 0; q < 4; ++q)
        total += grad_bias_kept[(octet * 4 + gate) * kThreads + (part * plan.tiles + tile) * kLanes +
                                in_block % kOctet * 4 + q];
    args.grad_bias[((int64_t{slice.d} * plan.groups + slice.group) * 4 + gate) * H + unit] = total;
  }
}

}  // namespace

bool backward_persistent(const PersistentBackwardArgs& args, Type io, Stream stream) {
  bool launched = false;
  with_kernel<1, 2, 4, 8, 12, 16>(io, args.plan, [&]<class IO, int kPieces, Signal signal>() {
    launched = launch_whole("backward_persistent", &lstm_backward_persistent_kernel<IO, kPieces, signal>,
                            args, stream);
  });
  return launched;
}

}  // namespace fusedlstm::cuda
