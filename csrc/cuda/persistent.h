// The sequential part of one layer on a GPU in a single launch: W_hh stays on the chip for all steps, and
// blocks exchange the state through the L2 cache. Letters and layouts are those of stepwise.h; there is no
// projection, and "io" is a 16-bit type or float32, whose products are then TF32.
#pragma once

#include <cstdint>

#include "plan.h"
#include "sizes.h"
#include "stream.h"

namespace fusedlstm::cuda {

// The memory through which the blocks of a group exchange states: slot_count(signal) slots of [rows, terms]
// io, which take turns, and a flag for each block in kFlagWords words of its own, zero before the launch.
// With Signal::data every word that will be published is kEmpty before the launch.
constexpr int kFlagWords = 8;
constexpr uint32_t kEmpty = 0xffffffffu;  // in each of the io types a NaN that no conversion makes
struct Exchange {
  void* slots;
  uint32_t* flags;
};

struct PersistentForwardArgs {
  KernelSizes size;
  PersistentPlan plan;
  Exchange exchange;
  const void* weights;     // W_hh by pack_weights
  const void* bias_ih[2];  // [4H] io of each direction; null without biases
  const void* bias_hh[2];
  const void* h0;     // [D, N, H] io
  const void* c0;     // [D, N, H] io
  const void* gates;  // [S, D, 4H] compute  product of the input and W_ih
  void* kept;   // written: the activated gates, zero past a row's length; may be `gates`; null: not wanted
  void* cells;  // [S, D, H] io        written; null: not wanted
  void* y;      // [S, D, H] io        written; zero past a row's length
  void* h_n;    // [D, N, H] io           written
  void* c_n;    // [D, N, H] io           written
};

struct PersistentBackwardArgs {
  KernelSizes size;
  PersistentPlan plan;
  Exchange exchange;
  const void* weights;     // W_hh by pack_weights
  const void* gates;       // activated, as in kept.cuh
  const void* cells;       // [S, D, H] io
  const void* c0;          // [D, N, H] io
  const void* grad_cells;  // [S, D, H] io        of every cell state; may be null (zero)
  const void* grad_y;      // [S, D, H] io        may be null (zero)
  const void* grad_h_n;    // [D, N, H] io           may be null (zero)
  const void* grad_c_n;    // [D, N, H] io           may be null (zero)
  void* grad_c0;           // [D, N, H] io           written
  void* grad_gates;        // [S, D, 4H] io       written; zero past a row's length
  // [D, groups, 4H], written: sums of grad_gates over all steps and the rows of a group.
  float* grad_bias;
  // [D, N, 4H] io, written: grad_gates of each row's first step; zero where a reset keeps h0 from that step.
  void* grad_gates_first;
};

// Writes W_hh [D, 4H, H] io in the order in which the blocks read it, packed_bytes in all.
void pack_weights(const KernelSizes& size, const PersistentPlan& plan, const void* weight_hh, void* packed,
                  Type io, Stream stream);
inline int64_t packed_bytes(const KernelSizes& size, const PersistentPlan& plan) {
  return size.directions * plan.members * plan.weight_tiles * plan.k_blocks * kPersistentWarps *
         kFragmentBytes;
}

// Prepares the memory of an exchange, slot_words and then flag_words of 4 bytes, for its launch.
Exchange clear_exchange(const KernelSizes& size, const PersistentPlan& plan, uint32_t* memory, Type io,
                        Stream stream);
inline int64_t flag_words(const KernelSizes& size, const PersistentPlan& plan) {
  return plan.blocks(size.directions) * kFlagWords;
}
inline int64_t slot_words(const KernelSizes& size, const PersistentPlan& plan) {
  return size.directions * plan.groups * slot_count(plan.signal) * plan.rows * kPersistentWarps *
         plan.k_blocks * (kKBlockBytes / 4);
}

// False, without a launch, where the device does not take all blocks at once: the caller then runs the steps
// one by one.
bool forward_persistent(const PersistentForwardArgs& args, Type io, Stream stream);
bool backward_persistent(const PersistentBackwardArgs& args, Type io, Stream stream);

}  // namespace fusedlstm::cuda
