// What the persistent kernels share: weights in registers and shared memory, products on the tensor cores,
// and how blocks tell each other the state. csrc/README.md has the picture and the argument.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cells.cuh"
#include "persistent.h"

namespace fusedlstm::cuda {

constexpr int kLanes = 32;
constexpr int kThreads = kPersistentWarps * kLanes;

// A tile of the batch is 8 rows, a tile of weights 16. Of both, a lane reads whole 16-byte pieces: lane 4g +
// q has piece q of the 64 bytes of row g (and g + 8), and takes from it the operands of two products. That
// orders the terms of a sum otherwise than in memory, on both sides alike.
constexpr int kTileRows = 8;
// Units go by eights. Forward, two tiles of weights are the gates i, f and g, o of eight units, and the terms
// of a sum are units. Backward, a tile is sixteen units, and the terms are gates: i of eight units, then
// their f, g, o.
constexpr int kOctet = 8, kOctetTerms = 4 * kOctet;

template <class IO>
constexpr int kPieceTerms = 16 / sizeof(IO);

template <class IO>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<IO, Half>) {
    mma_half(sum, a, b);
  } else if constexpr (std::is_same_v<IO, BFloat16>) {
    mma_bfloat16(sum, a, b);
  } else {
    mma_tf32(sum, a, b);
  }
}

// 16 rows by 64 bytes of the weights, as one lane holds them.
struct Fragment {
  uint4 low, high;  // of rows g and g + 8
};

template <class IO>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const Fragment& a, const uint4& b) {
  multiply_add<IO>(sum, {a.low.x, a.high.x, a.low.y, a.high.y}, {b.x, b.y});
  multiply_add<IO>(sum, {a.low.z, a.high.z, a.low.w, a.high.w}, {b.z, b.w});
}

// Values as they are told to other blocks: float32 as TF32, rounded once here and not cut at each product.
template <class IO>
__device__ __forceinline__ IO told(float value) {
  if constexpr (sizeof(IO) == 4) {
    return round_to_tf32(value);
  } else {
    IO out;
    narrow(value, out);
    return out;
  }
}

// The weights of a block, kPieces pieces of each row for each warp: kHeld tiles in registers, the rest in
// shared memory.
template <class IO, int kPieces>
class Weights {
 public:
  static constexpr int kHeld = kRegisterFragments / kPieces;

  __device__ __forceinline__ Weights(const void* packed, int block, int tiles, void* rest)
      : tiles_(tiles), rest_(static_cast<uint4*>(rest) + place(0, 0)) {
    const uint4* const own =
        static_cast<const uint4*>(packed) + int64_t{block} * tiles * kPieces * 2 * kThreads;
#pragma unroll
    for (int tile = 0; tile < kHeld; ++tile)
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece)
        held_[tile][piece] = tile < tiles ? fragment(own + place(tile, piece)) : Fragment{};
    for (int tile = kHeld; tile < tiles; ++tile)
      for (int piece = 0; piece < kPieces; ++piece) {
        const Fragment loaded = fragment(own + place(tile, piece));
        uint4* const to = rest_ + distance(tile - kHeld, piece);
        to[0] = loaded.low;
        to[kLanes] = loaded.high;
      }
  }

  // Calls use(tile, sum) with each tile's product with 8 rows of the state, of which a lane holds `state`. It
  // has the sums of row g of the tile with columns 2q and 2q + 1, then of row g + 8.
  template <class Use>
  __device__ __forceinline__ void multiply(const uint4 (&state)[kPieces], const Use& use) const {
#pragma unroll
    for (int tile = 0; tile < kHeld; ++tile) {
      if (tile >= tiles_) break;
      float sum[4] = {};
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) multiply_add<IO>(sum, held_[tile][piece], state[piece]);
      use(tile, sum);
    }
    for (int tile = kHeld; tile < tiles_; ++tile) {
      float sum[4] = {};
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece)
        multiply_add<IO>(sum, fragment(rest_ + distance(tile - kHeld, piece)), state[piece]);
      use(tile, sum);
    }
  }

 private:
  // [tile][warp][piece][low, high][lane]
  static __device__ __forceinline__ int distance(int tile, int piece) {
    return (tile * kPersistentWarps * kPieces + piece) * 2 * kLanes;
  }
  static __device__ __forceinline__ int place(int tile, int piece) {
    const int warp = static_cast<int>(thread_index()) / kLanes,
              lane = static_cast<int>(thread_index()) % kLanes;
    return distance(tile, warp * kPieces + piece) + lane;
  }
  static __device__ __forceinline__ Fragment fragment(const uint4* place) {
    return {place[0], place[kLanes]};
  }

  int tiles_;
  uint4* rest_;
  Fragment held_[kHeld][kPieces];
};

// Where a block stands in the grid: a slice of the units of one direction, for one group of rows.
struct Slice {
  int member, group, d;  // which block of its group, which group of its direction
  int first_row, row_count;

  __device__ __forceinline__ Slice(const Sizes& size, const Persistent& plan) {
    const int block = static_cast<int>(block_index());
    member = block % plan.members;
    group = block / plan.members % plan.groups;
    d = block / plan.members / plan.groups;
    first_row = group * plan.rows;
    const int rest = static_cast<int>(size.batch) - first_row;
    row_count = rest < plan.rows ? rest : plan.rows;
  }
};

// What one group of blocks tells itself. The state before a step lies in one of two slots: one that is
// overwritten has been read by everyone, for whoever wrote the slot that came after it had read it before.
template <class IO, int kPieces>
class Ring {
 public:
  static constexpr int kRowTerms = kPersistentWarps * kPieces * 4 * kPieceTerms<IO>;

  __device__ __forceinline__ Ring(const Exchange& exchange, const Slice& slice, const Persistent& plan)
      : plan_(plan) {
    const int64_t group = int64_t{slice.d} * plan.groups + slice.group;
    slots_ = static_cast<IO*>(exchange.slots) + group * 2 * plan.rows * kRowTerms;
    flags_ = exchange.flags + group * plan.members * kFlagWords;
  }

  // Term `term` of row `row` of the state with number `state`.
  __device__ __forceinline__ IO* at(int state, int row, int term) const {
    return slots_ + int64_t{(state & 1) * plan_.rows + row} * kRowTerms + term;
  }

  // A lane's values of two neighbouring rows (2q, 2q + 1 of a tile) for one unit, g of 8 whose terms begin at
  // `term`: every lane of the warp takes part.
  __device__ __forceinline__ void tell(int state, int tile, int term, IO even_row, IO odd_row) const {
    const int lane = static_cast<int>(thread_index()) % kLanes, g = lane / 4, q = lane % 4;
    if constexpr (sizeof(IO) == 2) {
      // A lane now has two neighbouring units of row g.
      const uint32_t pair = transpose_8x8(bits(even_row) | bits(odd_row) << 16);
      store_relaxed(reinterpret_cast<uint32_t*>(at(state, tile * kTileRows + g, term + 2 * q)), pair);
    } else {
      const int row = tile * kTileRows + 2 * q;
      store_relaxed(reinterpret_cast<uint32_t*>(at(state, row, term + g)), bits(even_row));
      store_relaxed(reinterpret_cast<uint32_t*>(at(state, row + 1, term + g)), bits(odd_row));
    }
  }
  // After a barrier, by one thread: what the block has told so far is there.
  __device__ __forceinline__ void announce(int member, uint32_t count) const {
    store_release(flags_ + member * kFlagWords, count);
  }
  // Until members first..last have announced `count`; for the whole warp.
  __device__ __forceinline__ void await(int first, int last, uint32_t count) const {
    const int member = first + static_cast<int>(thread_index()) % kLanes;
    for (int other = member; other <= last; other += kLanes) await(flags_ + other * kFlagWords, count);
    if (member <= last) fence();
    warp_barrier();
  }
  // A warp's own pieces of 8 rows of the state.
  __device__ __forceinline__ void read(int state, int tile, uint4 (&pieces)[kPieces]) const {
    const int warp = static_cast<int>(thread_index()) / kLanes,
              lane = static_cast<int>(thread_index()) % kLanes;
    const IO* const row =
        at(state, tile * kTileRows + lane / 4, (warp * kPieces * 4 + lane % 4) * kPieceTerms<IO>);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece)
      pieces[piece] = load_relaxed(reinterpret_cast<const uint4*>(row + piece * 4 * kPieceTerms<IO>));
  }

 private:
  static constexpr uint64_t kPatience =
      20'000'000'000;  // ns: no step takes as long, so something has gone wrong

  static __device__ __forceinline__ uint32_t bits(IO value) {
    if constexpr (sizeof(IO) == 2) {
      uint16_t out;
      std::memcpy(&out, &value, 2);
      return out;
    } else {
      uint32_t out;
      std::memcpy(&out, &value, 4);
      return out;
    }
  }
  static __device__ __forceinline__ void await(const uint32_t* flag, uint32_t count) {
    uint64_t since = 0;
    for (unsigned polls = 1; load_relaxed(flag) < count; ++polls) {
      if (polls % 4096 != 0) continue;
      const uint64_t now = nanoseconds();
      if (since == 0) since = now;
      if (now - since > kPatience) give_up();
    }
  }

  const Persistent& plan_;
  IO* slots_;
  uint32_t* flags_;
};

// The warps' sums of one tile of weights and one of the batch, added up in the order of the warps.
class Partials {
 public:
  __device__ __forceinline__ explicit Partials(float4* memory) : memory_(memory) {}

  __device__ __forceinline__ void put(int item, const float (&sum)[4]) const {
    const int warp = static_cast<int>(thread_index()) / kLanes;
    *place(item, warp) = float4{sum[0], sum[1], sum[2], sum[3]};
  }
  __device__ __forceinline__ float4 total(int item) const {
    float4 sum = *place(item, 0);
#pragma unroll
    for (int warp = 1; warp < kPersistentWarps; ++warp) {
      const float4 part = *place(item, warp);
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    return sum;
  }

 private:
  __device__ __forceinline__ float4* place(int item, int warp) const {
    return memory_ + (item * kPersistentWarps + warp) * kLanes + thread_index() % kLanes;
  }

  float4* memory_;
};

// Calls f<IO, kPieces> for the type and the plan's pieces, which is one of `kPieces...`.
template <int... kPieces, class F>
void with_pieces(Type io, int pieces, F&& f) {
  const auto of_type = [&]<class IO>() {
    const bool found = ((pieces == kPieces && (f.template operator()<IO, kPieces>(), true)) || ...);
    if (!found) throw std::logic_error("fusedlstm: the plan asks for a persistent kernel that is not there");
  };
  switch (io) {
    case Type::float32:
      return of_type.template operator()<float>();
    case Type::float16:
      return of_type.template operator()<Half>();
    case Type::bfloat16:
      return of_type.template operator()<BFloat16>();
    case Type::float64:
      throw std::logic_error("fusedlstm: there is no persistent kernel for float64");
  }
}

}  // namespace fusedlstm::cuda
