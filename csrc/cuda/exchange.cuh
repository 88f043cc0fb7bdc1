// How the blocks of a persistent launch exchange the state. csrc/README.md has the proof.
#pragma once

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
  static constexpr int kQuads = most_quads(kPass, kKBlocks);
  static constexpr int kRegisterFragments = register_fragments_beside(kPass, kKBlocks);
  static constexpr int kStages = load_stages(kKBlocks), kStageKBlocks = kKBlocks / kStages;
  static constexpr int kRowTiles = row_tiles_loaded(kKBlocks);  // of a load
  static constexpr int kLaneTerms = kAccessBytes / sizeof(IO);  // of a k-block, in one lane
  static constexpr int kWarpTerms = kKBlocks * 4 * kLaneTerms;  // terms of a sum that a warp multiplies
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
// blocks have read it. Fences of that lane and of each reader come before the slot is used again. Words of
// rows and of terms that do not exist are zero from the beginning, and nobody publishes them.
template <class Traits>
class Ring {
 public:
  using IO = typename Traits::IO;
  // What the lane of a cell publishes: h, or the gradients of the gates i, f, g, o.
  static constexpr int kValues = Traits::kPass == Pass::forward ? 1 : 4;

  __device__ __forceinline__ Ring(const Exchange& exchange, const Slice& slice, const PersistentPlan& plan)
      : slot_words_(static_cast<unsigned>(plan.rows / kRowTile * kRowTileWords)) {
    const int64_t group = int64_t{slice.d} * plan.groups + slice.group;
    slots_ = static_cast<uint32_t*>(exchange.slots) + group * Traits::kSlots * int64_t{slot_words_};
    flags_ = exchange.flags + group * plan.members * kFlagWords;
  }

  // The words of row tile `row_tile` in the slot of a state.
  __device__ __forceinline__ uint32_t* words(int state_index, int row_tile) const {
    const auto slot = static_cast<unsigned>(state_index & (Traits::kSlots - 1));
    return slots_ + uint64_t{slot} * slot_words_ + row_tile * kRowTileWords;
  }
  // The first of the words() that this lane publishes for unit lane % 8 of an octet, in row `row` of row tile
  // `row_tile`; kNoWord for none. Two units of a 16-bit type share a word. The lane of the even one publishes
  // it; of two gates it publishes the first's word, and the lane of the odd unit the second's.
  static constexpr int kNoWord = -1;
  static __device__ __forceinline__ int first_word(int row_tile, int row, int octet) {
    const int unit = lane_index() % kUnitOctet;
    if (kPacked && kValues == 1 && unit % 2) return kNoWord;
    const int term = octet * kUnitOctet * kValues + unit + (kPacked ? unit % 2 * kUnitOctet : 0);
    const int access = term / Traits::kLaneTerms;
    return row_tile * kRowTileWords + (access / 4 * kLanes + row * 4 + access % 4) * kAccessWords +
           term % Traits::kLaneTerms * static_cast<int>(sizeof(IO)) / 4;
  }
  // Publishes the values of a lane's cell from its first word on. Every lane of the warp takes part.
  __device__ __forceinline__ void publish(uint32_t* word, bool publishes,
                                          const float (&values)[kValues]) const {
    uint32_t words[kWords];
    if constexpr (!kPacked) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = bits_of(round_to_tf32(values[i]));
    } else if constexpr (kValues == 1) {
      words[0] = pack<IO>(values[0], shuffle_xor(values[0], 1));
    } else {
      const bool odd = lane_index() % 2;
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const float first = values[2 * i], second = values[2 * i + 1],
                    other = shuffle_xor(odd ? first : second, 1);
        words[i] = pack<IO>(odd ? other : first, odd ? second : other);
      }
    }
    if (publishes) store(word, words);
  }
  // Clears what this lane published of a state that every block has read.
  __device__ __forceinline__ void clear(uint32_t* word) const {
    if constexpr (kByData) {
      uint32_t words[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = kEmpty;
      store(word, words);
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
  // Loads k-blocks of this warp, kCount of them from kFirst on, of a row tile of a state. They need not be
  // published yet: poll() waits for that.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void load(int state_index, int row_tile, uint4 (&k_blocks)[kCount]) const {
    const uint4* const first = first_of_warp(state_index, row_tile);
#pragma unroll
    for (int i = 0; i < kCount; ++i) k_blocks[i] = load_relaxed(first + (kFirst + i) * kLanes);
  }
  // Polls what load() read of kTiles row tiles, where k_block(tile, i) has it, until all of it has been
  // published. Each round loads again all that was empty: one after the other, k-blocks would take a round
  // trip to the L2 cache each.
  template <int kFirst, int kCount, int kTiles, class KBlock>
  __device__ __forceinline__ void poll(int state_index, int row_tile, const KBlock& k_block) const {
    if constexpr (kByData) {
      const uint4* const first = first_of_warp(state_index, row_tile);
      spin_while([&] {
        bool empty = false;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            uint4& words = k_block(tile, i);
            const bool is_empty = has_empty(words);
            load_relaxed_if(is_empty, first + tile * (kRowTileWords / kAccessWords) + (kFirst + i) * kLanes,
                            words);
            empty = empty || is_empty;
          }
        return empty;
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
  static constexpr bool kByData = Traits::kSignal == Signal::data, kPacked = sizeof(IO) == 2;
  static constexpr int kAccessWords = kAccessBytes / 4,
                       kRowTileWords = kPersistentWarps * Traits::kKBlocks * kLanes * kAccessWords;
  static constexpr int kWords = kPacked ? (kValues + 1) / 2 : kValues;  // that a lane publishes of its cell
  // A poll takes a round trip to the L2 cache, 0.2 us or more, so the limit is 13 s or more. No step takes as
  // long: another block has failed. (A clock would cost registers that the weights need.)
  static constexpr unsigned kSpinLimit = 1u << 26;

  static __device__ __forceinline__ bool has_empty(const uint4& words) {
    return words.x == kEmpty || words.y == kEmpty || words.z == kEmpty || words.w == kEmpty;
  }
  template <class Condition>
  static __device__ __forceinline__ void spin_while(const Condition& condition) {
    for (unsigned polls = 0; condition(); ++polls)
      if (polls == kSpinLimit) trap_on_timeout();
  }

  __device__ __forceinline__ const uint4* first_of_warp(int state_index, int row_tile) const {
    return reinterpret_cast<const uint4*>(words(state_index, row_tile)) +
           warp_index() * Traits::kKBlocks * kLanes + lane_index();
  }
  // Stores the lane's words: of a 16-bit type every second gate's, of float32 every gate's. The gates of an
  // octet are 64 bytes of a row, or two k-blocks.
  static __device__ __forceinline__ void store(uint32_t* word, const uint32_t (&words)[kWords]) {
    constexpr int kKBlockWords = kLanes * kAccessWords;
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      store_relaxed(word + (kPacked ? i * 2 * kAccessWords : i / 2 * kKBlockWords + i % 2 * 2 * kAccessWords),
                    words[i]);
  }

  unsigned slot_words_;
  uint32_t* slots_;
  uint32_t* flags_;
};

}  // namespace fusedlstm::cuda
