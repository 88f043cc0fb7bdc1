// All steps of a layer forward in one launch. A block holds the rows of W_hh for all four gates of its units.
#include "persistent.cuh"
#include "persistent.h"

namespace fusedlstm::cuda {
namespace {

// Two neighbouring rows of the batch, which one lane updates for one unit.
struct Pair {
  Place at[2];
  bool exists[2];
};

template <class IO, int kPieces, Signal signal>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_forward_persistent_kernel(const PersistentForwardArgs args) {
  const Sizes& size = args.size;
  const Persistent& plan = args.plan;
  const int64_t H = size.hidden;
  const int steps = static_cast<int>(size.steps);
  const int warp = static_cast<int>(thread_index()) / kLanes,
            lane = static_cast<int>(thread_index()) % kLanes;
  const int blocks = plan.tiles / 2, chunks = plan.rows / kTileRows / plan.chunk;
  const Slice slice(size, plan);
  const Ring<IO, kPieces, signal> ring(args.exchange, slice, plan);

  const Partials partials(&shared_memory<float4>());
  auto* const c_kept = reinterpret_cast<float2*>(&shared_memory<float4>() +
                                                 plan.chunk * plan.tiles * kThreads);  // [chunk][thread]
  const Weights<IO, kPieces, kHeldFragments<Pass::forward, kPieces>> weights(
      args.weights, slice.d * plan.members + slice.member, plan.tiles, c_kept + chunks * kThreads);
  const int first_unit = slice.member * blocks * kOctet;

  // In each chunk this warp finishes one item: eight units for one tile of the batch. The last block may have
  // fewer units than it has room for, and the exchange has no place for the others.
  const int block = warp % blocks, item_tile = warp / blocks, item_unit = first_unit + block * kOctet;
  const bool works = item_tile < plan.chunk && item_unit < H;
  const int unit = item_unit + lane / 4;
  const bool unit_exists = works && unit < H;
  float bias[4] = {};
  if (const auto* const bias_ih = static_cast<const IO*>(args.bias_ih[slice.d]); bias_ih && unit_exists) {
    const auto* const bias_hh = static_cast<const IO*>(args.bias_hh[slice.d]);
    for (int gate = 0; gate < 4; ++gate)
      bias[gate] = widen(bias_ih[gate * H + unit]) + widen(bias_hh[gate * H + unit]);
  }

  const auto pair_at = [&](int step, int tile) {
    Pair pair;
    for (int r = 0; r < 2; ++r) {
      const int row = tile * kTileRows + lane % 4 * 2 + r;
      pair.exists[r] = unit_exists && row < slice.row_count;
      const auto n = static_cast<unsigned>(slice.first_row + (pair.exists[r] ? row : 0));
      pair.at[r] = place(size, step, static_cast<unsigned>(slice.d), n, static_cast<unsigned>(unit));
    }
    return pair;
  };
  // Tells the state before `step`, where `next` are its rows, given that after the step before it.
  const auto tell = [&](int step, int tile, const Pair& next, const float (&h)[2]) {
    IO value[2];
    for (int r = 0; r < 2; ++r) {
      const Place& at = next.at[r];
      const bool first = next.exists[r] && at.active && at.first;
      const float before = first ? widen(static_cast<const IO*>(args.h0)[at.row * H + unit]) : h[r];
      value[r] = told<IO>(next.exists[r] && at.active && !at.enters ? before : 0.0f);
    }
    ring.tell(step, tile, item_unit, value[0], value[1]);
  };

  for (int chunk = 0; works && chunk < chunks; ++chunk) {
    const int tile = chunk * plan.chunk + item_tile;
    const Pair pair = pair_at(0, tile);
    for (int r = 0; r < 2; ++r) {  // the last states of rows of no steps
      const int64_t state = pair.at[r].row * H + unit;
      if (!pair.exists[r]) continue;
      static_cast<IO*>(args.h_n)[state] = static_cast<const IO*>(args.h0)[state];
      static_cast<IO*>(args.c_n)[state] = static_cast<const IO*>(args.c0)[state];
    }
    tell(0, tile, pair, {0, 0});
  }
  block_barrier();
  if (thread_index() == 0) ring.announce(slice.member, chunks);

  // The units whose state this warp multiplies, and the blocks that tell it.
  constexpr int kTerms = Ring<IO, kPieces, signal>::kRowTerms / kPersistentWarps;
  const int begin = warp * kTerms, end = begin + kTerms < H ? begin + kTerms : static_cast<int>(H);
  const int first_teller = begin / (blocks * kOctet), last_teller = (end - 1) / (blocks * kOctet);

  for (int step = 0; step < steps; ++step) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int first_tile = chunk * plan.chunk, tile = first_tile + item_tile;
      // All that comes from memory is asked for before the wait and looked at only after the products.
      const Pair pair = works ? pair_at(step, tile) : Pair{}, next = works ? pair_at(step + 1, tile) : Pair{};
      float gates[2][4] = {};
      for (int r = 0; r < 2; ++r) {
        if (!pair.exists[r] || !pair.at[r].active) continue;
        const auto* const gate = static_cast<const float*>(args.gates) +
                                 4 * pair.at[r].sequence_row(size, pair.at[r].t) * H + unit;
        gates[r][0] = gate[0], gates[r][1] = gate[H], gates[r][2] = gate[2 * H], gates[r][3] = gate[3 * H];
      }

      const auto count = static_cast<uint32_t>(step * chunks + chunk + 1);
      if (begin < end) ring.await(first_teller, last_teller, count);
      const auto multiply = [&]<int kParts>(int part) {
        uint4 state[kParts][kPieces];
        ring.template fetch<0>(step, first_tile + part, state);
        ring.template confirm<0>(step, first_tile + part, state);
        weights.template multiply<0>(state, [&](int weight_tile, int further, const float (&sum)[4]) {
          partials.put((part + further) * plan.tiles + weight_tile, sum);
        });
      };
      // Two tiles of the batch share each load of weights, where registers hold both.
      constexpr int kParts = kPieces <= 6 ? 2 : 1;
      int part = 0;
      for (; part + kParts <= plan.chunk; part += kParts) multiply.template operator()<kParts>(part);
      if (part < plan.chunk) multiply.template operator()<1>(part);
      block_barrier();

      float h[2] = {}, c[2] = {};
      if (works) {
        const float4 if_sum = partials.total(item_tile * plan.tiles + 2 * block);
        const float4 go_sum = partials.total(item_tile * plan.tiles + 2 * block + 1);
        const float sums[2][4] = {{if_sum.x, if_sum.z, go_sum.x, go_sum.z},
                                  {if_sum.y, if_sum.w, go_sum.y, go_sum.w}};
        const float2 kept = c_kept[chunk * kThreads + thread_index()];
        for (int r = 0; r < 2; ++r) {
          const Place& at = pair.at[r];
          if (!pair.exists[r] || !at.active) continue;
          const float before = at.first ? widen(static_cast<const IO*>(args.c0)[at.row * H + unit])
                               : r      ? kept.y
                                        : kept.x;
          for (int gate = 0; gate < 4; ++gate) gates[r][gate] += bias[gate] + sums[r][gate];
          const Gates<float> active =
              activate<FastMath>(Gates<float>{gates[r][0], gates[r][1], gates[r][2], gates[r][3]});
          c[r] = next_cell(active, at.enters ? 0.0f : before);
          h[r] = hidden_state<FastMath>(active, c[r]);
          gates[r][0] = active.i, gates[r][1] = active.f, gates[r][2] = active.g, gates[r][3] = active.o;
        }
        if (step + 1 < steps) tell(step + 1, tile, next, h);
        if (step > 0) ring.forget(step - 1, tile, item_unit);
        c_kept[chunk * kThreads + thread_index()] = {c[0], c[1]};
      }
      block_barrier();
      if (thread_index() == 0 && step + 1 < steps)
        ring.announce(slice.member, count + static_cast<uint32_t>(chunks));

      if (chunk + 1 == chunks) ring.settle(step);

      // Nobody waits for what follows.
      for (int r = 0; r < 2; ++r) {
        const Place& at = pair.at[r];
        if (!pair.exists[r]) continue;
        const int64_t here = at.sequence_row(size, at.t) * H, state = at.row * H + unit;
        IO output;
        narrow(h[r], output);
        static_cast<IO*>(args.y)[here + unit] = output;
        if (args.cell) static_cast<float*>(args.cell)[here + unit] = c[r];
        if (!at.active) continue;
        if (args.keep_gates) {
          auto* const gate = static_cast<float*>(args.gates) + 4 * here + unit;
          gate[0] = gates[r][0], gate[H] = gates[r][1], gate[2 * H] = gates[r][2], gate[3 * H] = gates[r][3];
        }
        if (!at.last) continue;
        static_cast<IO*>(args.h_n)[state] = output;
        narrow(c[r], static_cast<IO*>(args.c_n)[state]);
      }
    }
  }
}

}  // namespace

bool forward_persistent(const PersistentForwardArgs& args, Type io, Stream stream) {
  bool launched = false;
  with_kernel<1, 2, 3, 4, 6, 8>(io, args.plan, [&]<class IO, int kPieces, Signal signal>() {
    launched = launch_whole("forward_persistent", &lstm_forward_persistent_kernel<IO, kPieces, signal>, args,
                            stream);
  });
  return launched;
}

}  // namespace fusedlstm::cuda
