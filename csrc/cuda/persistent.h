// The sequential part of one layer on a GPU in a single launch: W_hh stays on the chip for all steps, and
// blocks tell each other the state through the L2 cache. Words and layouts as in stepwise.h; there is no
// projection, and "io" is a 16-bit type or float32, whose products are then TF32.
#pragma once

#include <cstdint>

#include "../plan.h"
#include "sizes.h"
#include "stream.h"

namespace fusedlstm::cuda {

// What blocks of one group tell each other: slot_count(signal) slots of [rows of all groups, terms] io, which
// take turns, and a flag for each block, in kFlagWords words of its own, zero before the launch. With
// Signal::data every word that will be told is kUntold, which is a NaN that no conversion makes.
constexpr int kFlagWords = 8;
constexpr uint32_t kUntold = 0xffffffffu;
struct Exchange {
  void* slots;
  uint32_t* flags;
};

struct PersistentForwardArgs {
  Sizes size;
  Persistent plan;
  Exchange exchange;
  const void* weights;     // W_hh by pack_weights
  const void* bias_ih[2];  // [4H] io of each direction; null without biases
  const void* bias_hh[2];
  const void* h0;   // [D, N, H] io
  const void* c0;   // [D, N, H] io
  void* gates;      // [T, N, D, 4H] compute  product of the input and W_ih
  bool keep_gates;  // whether the activated gates take their place
  void* cell;       // [T, N, D, H] compute   written; null: not wanted
  void* y;          // [T, N, D, H] io        written; zero past a row's length
  void* h_n;        // [D, N, H] io           written
  void* c_n;        // [D, N, H] io           written
};

struct PersistentBackwardArgs {
  Sizes size;
  Persistent plan;
  Exchange exchange;
  const void* weights;    // W_hh by pack_weights
  const void* gates;      // [T, N, D, 4H] compute  activated
  const void* cell;       // [T, N, D, H] compute
  const void* c0;         // [D, N, H] io
  const void* grad_cell;  // [T, N, D, H] compute   of every cell state; may be null (zero)
  const void* grad_y;     // [T, N, D, H] io        may be null (zero)
  const void* grad_h_n;   // [D, N, H] io           may be null (zero)
  const void* grad_c_n;   // [D, N, H] io           may be null (zero)
  void* grad_c0;          // [D, N, H] io           written
  void* grad_gates;       // [T, N, D, 4H] io       written; zero past a row's length
  float* grad_bias;   // [D, groups, 4H]        written: sums of grad_gates over all steps and a group's rows
  void* first_gates;  // [D, N, 4H] io          written: those of each row's first step, as far as h0 reaches
                      // it; else zero
};

// W_hh [D, 4H, H] io as the blocks read it, packed_bytes of it.
void pack_weights(const Sizes& size, const Persistent& plan, Pass pass, const void* weight_hh, void* packed,
                  Type io, Stream stream);
inline int64_t packed_bytes(const Sizes& size, const Persistent& plan) {
  return size.directions * plan.members * plan.tiles * plan.pieces * 32 * kPersistentWarps * 32;
}

// Memory of an exchange before its launch: slot_words of 4 bytes, and then flag_words.
Exchange clear_exchange(const Sizes& size, const Persistent& plan, Pass pass, uint32_t* memory, Type io,
                        Stream stream);
inline int64_t flag_words(const Sizes& size, const Persistent& plan) {
  return plan.blocks(size.directions) * kFlagWords;
}
inline int64_t slot_words(const Sizes& size, const Persistent& plan) {
  return size.directions * plan.groups * slot_count(plan.signal) * plan.rows * kPersistentWarps *
         plan.pieces * 16;
}

// Whether the device takes all blocks of the launch at once; a caller that is told false runs the steps one
// by one.
bool forward_persistent(const PersistentForwardArgs& args, Type io, Stream stream);
bool backward_persistent(const PersistentBackwardArgs& args, Type io, Stream stream);

}  // namespace fusedlstm::cuda
