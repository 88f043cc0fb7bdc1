// One layer on the CPU, from pointers: what the passes read and write. Every direction has arguments of its
// own.
//
// Sizes: T steps, N rows of the batch, I features, H hidden units, P outputs of a step (P = H without a
// projection). Every tensor is row-major; a "row stride" counts elements from one row of the batch to the
// next, and one step is N rows further. Gates are ordered i, f, g, o. T is the type that is computed in, W
// that of the weights.
#pragma once

#include <cstdint>

#include "plan.h"

namespace fusedlstm::cpu {

// Formats of storage, widened when they are read.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Which rows take part in which step. Rows are visited longest first, so the active ones are always a prefix.
struct Rows {
  const int64_t* length;  // [N]  steps of each row
  const int64_t* order;   // [N]  rows sorted by falling length
  const int64_t* active;  // [T]  how many rows of `order` are longer than t
  const bool* resets;  // [T, N]  which rows a segment begins in at step t, from states of zero; may be null
};

struct Sizes {
  int64_t steps, batch, input, hidden, outputs;  // T, N, I, H, P
};

template <class T, class W>
struct ForwardArgs {
  Sizes size;
  Rows rows;
  bool reverse;        // walk each row from its last step to its first
  const W* weight_ih;  // [4H, I]
  const W* weight_hh;  // [4H, P]
  const W* weight_hr;  // [P, H]    null: no projection
  T* packed_ih;        // room for packed_weights(I, H) elements; null: weights are read as they are
  T* packed_hh;        //                        (P, H)
  const T* bias;       // [4H]      may be null
  const T* x;          // [T, N, I]
  const T* h0;         // [N, P]
  const T* c0;         // [N, H]
  const T* zeros;      // [max(H, P)] the state that a segment begins from; may be null without resets
  T* gates;  // [gates_steps, N, 4H]  step t is at t % gates_steps; the activated gates are left with
             // keep_gates; without it nothing is written with input_in_step
  int64_t gates_steps;   //          T, or the plan's chunk
  int64_t gates_stride;  //          row stride
  bool keep_gates;
  bool input_in_step;  // the input's share of the gates is formed with a step, not for a chunk of them before
  bool recompute;      // y is given and not written: gates and cells alone are wanted
  T* y;                // [T, N, P]  written for the active rows of a step
  int64_t y_stride;    //            row stride
  T* c;                // [T, N, H]  written; [N, H], overwritten step by step, when c_step is 0
  int64_t c_stride;    //            row stride
  int64_t c_step;      //            elements from a step to the next
  T* h;                // [N, H]     room for one step's state before its projection; null without one
  T* h_n;              // [N, P]     written: the state after each row's last step; null with recompute
  T* c_n;              // [N, H]     written; may be `c` when c_step is 0; null with recompute
};

template <class T>
struct BackwardArgs {
  Sizes size;
  Rows rows;
  bool reverse;
  const T* weight_ih;    // [4H, I]
  const T* weight_hh;    // [4H, P]
  const T* weight_hr;    // [P, H]    null: no projection
  const T* x;            // [T, N, I]
  const T* h0;           // [N, P]
  const T* c0;           // [N, H]
  const T* zeros;        // [4H]
  const T* y;            // [T, N, P]
  const T* gates;        // [T, N, 4H] activated
  const T* c;            // [T, N, H]
  const T* grad_y;       // [T, N, P]  may be null (zero)
  const T* grad_c;       // [T, N, H]  may be null (zero): gradient of every cell state
  const T* grad_h_n;     // [N, P]     may be null (zero)
  int64_t gates_stride;  // row strides: gates
  int64_t y_stride;      //              y and grad_y
  int64_t c_stride;      //              c and grad_c
  // Results; what is null is not wanted. Those of the weights, of the input and of h0 are added to what is
  // there.
  T* grad_c0;           // [N, H]     holds the gradient of c_n on entry
  T* grad_x;            // [T, N, I]
  bool adds_to_grad_x;  // which holds the other direction's
  T* grad_h0;           // [N, P]
  T* grad_weight_ih;
  T* grad_weight_hh;
  T* grad_weight_hr;
  T* grad_bias;  // [4H]
  T* workspace;  // backward_workspace(size, plan) elements
};

// Elements of W_ih or W_hh when packed, and what the passes need beside their arguments.
int64_t packed_weights(int64_t depth, int64_t hidden);
template <class T, class W>
int64_t forward_room(const Sizes& size, const Plan& plan);
int64_t backward_workspace(const Sizes& size, int64_t chunk, bool projected);

// Both return the same bits for any number of threads. `directions` has `count` of them, of the same sizes;
// `room` is for forward_room(size, plan) elements.
template <class T, class W>
void forward(const ForwardArgs<T, W>* directions, int64_t count, T* room, const Plan& plan);
template <class T>
void backward(const BackwardArgs<T>& args, const Plan& plan);

}  // namespace fusedlstm::cpu
