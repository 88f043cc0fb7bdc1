// How the blocks of a persistent launch exchange the state. csrc/README.md has the proof.
#pragma once

#include <cstring>

#include "cells.cuh"
#include "persistent.h"

namespace fusedlstm::cuda {

// Of a persistent kernel.
template <class IO_, Pass kPass_, int kKBlocks_, Signal kSignal_>
struct PersistentTraits {
  using IO = IO_;
  static constexpr Pass kPass = kPass_;
  static constexpr int kKBlocks = kKBlocks_;  // for each warp
  static constexpr Signal kSignal = kSignal_;
  static constexpr int kSlots = slot_count(kSignal);
  static constexpr int kRegisterFragments = register_fragments_beside(kPass, kKBlocks);
  static constexpr int kLaneTerms = kAccessBytes / sizeof(IO);     // of a k-block, in one lane
  static constexpr int kWarpTerms = kKBlocks * 4 * kLaneTerms;     // terms of a sum that a warp multiplies
  static constexpr int kRowTerms = kPersistentWarps * kWarpTerms;  // of a row of the state, with padding
};

__device__ __forceinline__ int lane_index() {
  return static_cast<int>(thread_index()) % kLanes;
}
__device__ __forceinline__ int warp_index() {
  return static_cast<int>(thread_index()) / kLanes;
}

// A block's part of the grid: a slice of the units of one direction, for one group of rows.
struct Slice {
  int member, group, d;  // which block of its group, which group of its direction
  int first_row, row_count;

  __device__ __forceinline__ Slice(const KernelSizes& size, const PersistentPlan& plan) {
    const int block = static_cast<int>(block_index());
    member = block % plan.members;
    group = block / plan.members % plan.groups;
    d = block / plan.members / plan.groups;
    first_row = group * plan.rows;
    const int rest = static_cast<int>(size.batch) - first_row;
    row_count = rest < plan.rows ? rest : plan.rows;
  }
};

// The exchange of one group of blocks: the state before a step lies in a slot, and slots take turns. A slot
// is [row tile][k-block][lane] of 16 bytes: a warp reads 512 consecutive bytes, twice as fast as 64 of 8 rows
// (section "broadcast" of benchmarks/results/h200/calibration.jsonl).
//
// Signal::flag: a block publishes its part of the state and then sets its flag. Signal::data: a word has been
// published when it is not kEmpty. The lane that published a word clears it, resets it to kEmpty, when all
// blocks have read it. Fences of that lane and of each reader come before the slot is used again.
template <class Traits>
class Ring {
 public:
  using IO = typename Traits::IO;

  __device__ __forceinline__ Ring(const Exchange& exchange, const Slice& slice, const PersistentPlan& plan)
      : plan_(plan) {
    const int64_t group = int64_t{slice.d} * plan.groups + slice.group;
    slots_ = static_cast<IO*>(exchange.slots) + group * Traits::kSlots * plan.rows * Traits::kRowTerms;
    flags_ = exchange.flags + group * plan.members * kFlagWords;
  }

  // Publishes the values of rows 2q and 2q + 1 of a row tile for unit g of the octet whose terms begin at
  // `term`, where the lane is 4g + q. Every lane of the warp takes part.
  __device__ __forceinline__ void publish(int state_index, int row_tile, int term, IO even_row,
                                          IO odd_row) const {
    if constexpr (sizeof(IO) == 2) {
      // After the transpose a lane has two neighbouring units of row g.
      store_relaxed(word(state_index, row_tile, term), transpose_8x8(bits(even_row) | bits(odd_row) << 16));
    } else {
      store_relaxed(word(state_index, row_tile, term), bits(even_row));
      store_relaxed(word(state_index, row_tile, term, 1), bits(odd_row));
    }
  }
  // Clears what this lane published of a state that every block has read.
  __device__ __forceinline__ void clear(int state_index, int row_tile, int term) const {
    if constexpr (kByData) {
      store_relaxed(word(state_index, row_tile, term), kEmpty);
      if constexpr (sizeof(IO) == 4) store_relaxed(word(state_index, row_tile, term, 1), kEmpty);
    }
  }

  // By one thread after a barrier: sets the flag of block `member` to the number of chunks it has published.
  __device__ __forceinline__ void signal(int member, uint32_t count) const {
    if constexpr (!kByData) store_release(flags_ + member * kFlagWords, count);
  }
  // By a whole warp: waits until the flags of blocks first..last are at `count`.
  __device__ __forceinline__ void wait(int first, int last, uint32_t count) const {
    if constexpr (!kByData) {
      for (int member = first + lane_index(); member <= last; member += kLanes) {
        const uint32_t* const flag = flags_ + member * kFlagWords;
        spin_while([&] { return load_relaxed(flag) < count; });
        load_acquire(flag);  // a fence takes 0.4 us more (calibration.jsonl, "flags")
      }
      warp_barrier();
    }
  }
  // Loads k-blocks of this warp, kCount of them from kFirst on, for kRowTiles row tiles of a state. They need
  // not be published yet: poll() waits for that.
  template <int kFirst, int kRowTiles, int kCount>
  __device__ __forceinline__ void load(int state_index, int row_tile,
                                       uint4 (&k_blocks)[kRowTiles][kCount]) const {
    const uint4* const first = first_of_warp(state_index, row_tile);
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile)
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        k_blocks[tile][i] = load_relaxed(first + (tile * kRowKBlocks + kFirst + i) * kLanes);
  }
  // Polls what load() read: loads it again until it has been published.
  template <int kFirst, int kRowTiles, int kCount>
  __device__ __forceinline__ void poll(int state_index, int row_tile,
                                       uint4 (&k_blocks)[kRowTiles][kCount]) const {
    if constexpr (kByData) {
      const uint4* const first = first_of_warp(state_index, row_tile);
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile)
#pragma unroll
        for (int i = 0; i < kCount; ++i)
          spin_while([&] {
            uint4& words = k_blocks[tile][i];
            const uint4* const address = first + (tile * kRowKBlocks + kFirst + i) * kLanes;
            return has_empty(words) && has_empty(words = load_relaxed(address));
          });
    }
  }
  // By every thread after a step: every kStepsPerFence-th time, orders what the thread has read and cleared
  // before what it publishes and reads later.
  __device__ __forceinline__ void fence_after(int step) const {
    if constexpr (kByData)
      if (step % kStepsPerFence == kStepsPerFence - 1) fence();
  }

 private:
  static constexpr bool kByData = Traits::kSignal == Signal::data;
  static constexpr int kRowKBlocks = kPersistentWarps * Traits::kKBlocks;
  // A poll takes a round trip to the L2 cache, 0.2 us or more, so the limit is 13 s or more. No step takes as
  // long: another block has failed. (A clock would cost registers that the weights need.)
  static constexpr unsigned kSpinLimit = 1u << 26;

  static __device__ __forceinline__ bool has_empty(const uint4& words) {
    return words.x == kEmpty || words.y == kEmpty || words.z == kEmpty || words.w == kEmpty;
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
  static __device__ __forceinline__ void spin_while(const Condition& condition) {
    for (unsigned polls = 0; condition(); ++polls)
      if (polls == kSpinLimit) trap_on_timeout();
  }

  // A lane's 16 bytes of a k-block of a row tile.
  __device__ __forceinline__ IO* address(int state_index, int row_tile, int k_block, int lane) const {
    const int64_t of_slot = (state_index & (Traits::kSlots - 1)) * (plan_.rows / kRowTile) + row_tile;
    return slots_ + of_slot * kRowTile * Traits::kRowTerms + (k_block * kLanes + lane) * Traits::kLaneTerms;
  }
  __device__ __forceinline__ const uint4* first_of_warp(int state_index, int row_tile) const {
    const int warp = warp_index(), lane = lane_index();
    return reinterpret_cast<const uint4*>(address(state_index, row_tile, warp * Traits::kKBlocks, lane));
  }
  // The word of an octet that a lane publishes: in row g for 16-bit types, in row 2q + `odd` for float32.
  __device__ __forceinline__ uint32_t* word(int state_index, int row_tile, int term, int odd = 0) const {
    const int lane = lane_index(), g = lane / 4, q = lane % 4;
    const bool narrow = sizeof(IO) == 2;
    const int row = narrow ? g : 2 * q + odd, own = term + (narrow ? 2 * q : g);
    const int access = own / Traits::kLaneTerms;  // counted in 16 bytes of the row
    return reinterpret_cast<uint32_t*>(address(state_index, row_tile, access / 4, row * 4 + access % 4) +
                                       own % Traits::kLaneTerms);
  }

  const PersistentPlan& plan_;
  IO* slots_;
  uint32_t* flags_;
};

}  // namespace fusedlstm::cuda
