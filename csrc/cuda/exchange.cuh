// How the blocks of a persistent launch tell each other the state. csrc/README.md has the argument.
#pragma once

#include <cstring>

#include "cells.cuh"
#include "persistent.h"

namespace fusedlstm::cuda {

constexpr int kLanes = 32;
constexpr int kThreads = kPersistentWarps * kLanes;

// A tile of the batch is 8 rows, a tile of weights 16. Of both, a piece is 64 bytes of each row, and lane 4g
// + q has 16 of them, the q-th of row g (and g + 8), from which it takes the operands of two products. That
// orders the terms of a sum otherwise than in memory, on both sides alike.
constexpr int kTileRows = 8;
// Units go by eights. Forward, two tiles of weights are the gates i, f and g, o of eight units, and the terms
// of a sum are units. Backward, a tile is sixteen units, and the terms are gates: i of eight units, then
// their f, g, o.
constexpr int kOctet = 8, kOctetTerms = 4 * kOctet;

template <class IO>
constexpr int kPieceTerms = 16 / sizeof(IO);

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

// What one group of blocks tells itself. The state before a step lies in a slot, and slots take turns. A slot
// is [tile of rows][piece][lane] 16 bytes: a warp reads 512 that follow each other, twice as fast as 64 of 8
// rows (section "broadcast" of benchmarks/results/h200/calibration.jsonl).
//
// Signal::flag: a block announces by a flag what it has told. Two slots: one that is overwritten has been
// read by everyone, for whoever told the state that came after it had read it before.
//
// Signal::data: what has been told is there when it is no longer kUntold, word by word. A word is made
// kUntold again by the lane that told it, once everyone has read it; when its slot's turn comes again, fences
// of that lane and of each reader lie between.
template <class IO, int kPieces, Signal signal>
class Ring {
 public:
  static constexpr int kRowTerms = kPersistentWarps * kPieces * 4 * kPieceTerms<IO>;

  __device__ __forceinline__ Ring(const Exchange& exchange, const Slice& slice, const Persistent& plan)
      : plan_(plan) {
    const int64_t group = int64_t{slice.d} * plan.groups + slice.group;
    slots_ = static_cast<IO*>(exchange.slots) + group * kSlots * plan.rows * kRowTerms;
    flags_ = exchange.flags + group * plan.members * kFlagWords;
  }

  // A lane's values of two neighbouring rows (2q, 2q + 1 of a tile) for one unit, g of 8 whose terms begin at
  // `term`: every lane of the warp takes part.
  __device__ __forceinline__ void tell(int state, int tile, int term, IO even_row, IO odd_row) const {
    if constexpr (sizeof(IO) == 2) {
      // A lane now has two neighbouring units of row g.
      store_relaxed(word(state, tile, term), transpose_8x8(bits(even_row) | bits(odd_row) << 16));
    } else {
      store_relaxed(word(state, tile, term), bits(even_row));
      store_relaxed(word(state, tile, term, 1), bits(odd_row));
    }
  }
  // What this lane told of a state that every block has read.
  __device__ __forceinline__ void forget(int state, int tile, int term) const {
    if constexpr (signal == Signal::data) {
      store_relaxed(word(state, tile, term), kUntold);
      if constexpr (sizeof(IO) == 4) store_relaxed(word(state, tile, term, 1), kUntold);
    }
  }

  // After a barrier, by one thread: what the block has told so far is there.
  __device__ __forceinline__ void announce(int member, uint32_t count) const {
    if constexpr (signal == Signal::flag) store_release(flags_ + member * kFlagWords, count);
  }
  // Until members first..last have announced `count`; for the whole warp.
  __device__ __forceinline__ void await(int first, int last, uint32_t count) const {
    if constexpr (signal == Signal::flag) {
      const int member = first + static_cast<int>(thread_index()) % kLanes;
      for (int other = member; other <= last; other += kLanes) {
        const uint32_t* const flag = flags_ + other * kFlagWords;
        wait_while([&] { return load_relaxed(flag) < count; });
        load_acquire(flag);  // a fence takes 0.4 us more (calibration.jsonl, "flags")
      }
      warp_barrier();
    }
  }
  // Asks for some of a warp's own pieces, from number kFirst on, of kTiles tiles of the state.
  template <int kFirst, int kTiles, int kCount>
  __device__ __forceinline__ void fetch(int state, int tile, uint4 (&pieces)[kTiles][kCount]) const {
    const uint4* const first = own(state, tile);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int piece = 0; piece < kCount; ++piece)
        pieces[t][piece] = load_relaxed(first + (t * kRowPieces + kFirst + piece) * kLanes);
  }
  // Waits until those that were fetched have been told, and fetches them again as long as they have not.
  template <int kFirst, int kTiles, int kCount>
  __device__ __forceinline__ void confirm(int state, int tile, uint4 (&pieces)[kTiles][kCount]) const {
    if constexpr (signal == Signal::data) {
      const uint4* const first = own(state, tile);
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int piece = 0; piece < kCount; ++piece)
          wait_while([&] {
            uint4& words = pieces[t][piece];
            const uint4* const place = first + (t * kRowPieces + kFirst + piece) * kLanes;
            return untold(words) && untold(words = load_relaxed(place));
          });
    }
  }
  // After a step, by every thread: orders what it has read and forgotten before what it tells and reads
  // later.
  __device__ __forceinline__ void settle(int step) const {
    if constexpr (signal == Signal::data)
      if (step % kStepsPerFence == kStepsPerFence - 1) fence();
  }

 private:
  static constexpr int kSlots = slot_count(signal);
  static constexpr int kRowPieces = kPersistentWarps * kPieces;
  // Polls, each of which takes a round trip to the L2 cache, 0.2 us or more: 13 s at the least. No step takes
  // as long, so something has gone wrong. (A clock would cost registers that the weights need.)
  static constexpr unsigned kPatience = 1u << 26;

  static __device__ __forceinline__ bool untold(const uint4& words) {
    return words.x == kUntold || words.y == kUntold || words.z == kUntold || words.w == kUntold;
  }
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
  template <class Condition>
  static __device__ __forceinline__ void wait_while(const Condition& condition) {
    for (unsigned polls = 0; condition(); ++polls)
      if (polls == kPatience) give_up();
  }

  // The 16 bytes of a lane, of one piece of a tile of the state with number `state`.
  __device__ __forceinline__ IO* at(int state, int tile, int piece, int lane) const {
    const int64_t of_slot = (state & (kSlots - 1)) * (plan_.rows / kTileRows) + tile;
    return slots_ + of_slot * kTileRows * kRowTerms + (piece * kLanes + lane) * kPieceTerms<IO>;
  }
  // A lane's part of its warp's first piece.
  __device__ __forceinline__ const uint4* own(int state, int tile) const {
    const int warp = static_cast<int>(thread_index()) / kLanes,
              lane = static_cast<int>(thread_index()) % kLanes;
    return reinterpret_cast<const uint4*>(at(state, tile, warp * kPieces, lane));
  }
  // The word that a lane tells of eight units: in row g for 16-bit types, in row 2q + `odd` for others.
  __device__ __forceinline__ uint32_t* word(int state, int tile, int term, int odd = 0) const {
    const int lane = static_cast<int>(thread_index()) % kLanes, g = lane / 4, q = lane % 4;
    const bool narrow = sizeof(IO) == 2;
    const int row = narrow ? g : 2 * q + odd, own = term + (narrow ? 2 * q : g);
    const int place = own / kPieceTerms<IO>;  // counted in 16 bytes of the row
    return reinterpret_cast<uint32_t*>(at(state, tile, place / 4, row * 4 + place % 4) +
                                       own % kPieceTerms<IO>);
  }

  const Persistent& plan_;
  IO* slots_;
  uint32_t* flags_;
};

}  // namespace fusedlstm::cuda
