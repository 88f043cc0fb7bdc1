// The sequential part of one direction of one LSTM layer on the CPU: what it reads, what it writes.
//
// Sizes: T steps, N rows of the batch, H hidden units, P outputs of a step (P = H without a projection).
// Every tensor is row-major; a "row stride" counts elements from one row of the batch to the next, and one
// step is N rows further. Gates are ordered i, f, g, o.
#pragma once

#include <cstdint>

namespace fusedlstm::cpu {

// Which rows take part in which step. Rows are visited longest first, so the active ones are always a prefix.
struct Rows {
  const int64_t* length;  // [N]  steps of each row
  const int64_t* order;   // [N]  rows sorted by falling length
  const int64_t* active;  // [T]  how many rows of `order` are longer than t
  const bool* resets;  // [T, N]  which rows a segment begins in at step t, from states of zero; may be null
};

struct Sizes {
  int64_t steps, batch, hidden, outputs;  // T, N, H, P
};

template <class T>
struct ForwardArgs {
  Sizes size;
  Rows rows;
  bool reverse;          // walk each row from its last step to its first
  const T* weight_hh;    // [4H, P]   null: its products with the states before each step are in `gates`
  const T* weight_hr;    // [P, H]    null: no projection
  const T* bias;         // [4H]      may be null
  const T* h0;           // [N, P]
  const T* c0;           // [N, H]
  T* gates;              // [T, N, 4H] holds x W_ih^T; with keep_gates, replaced by the activated gates
  int64_t gates_stride;  //            row stride
  bool keep_gates;
  T* y;  // [T, N, P]  written for the active rows of a step; null: not wanted, nor are h_n and c_n
  int64_t y_stride;  //            row stride
  T* c;              // [T, N, H]  written; [N, H], overwritten step by step, when c_step is 0
  int64_t c_stride;  //            row stride
  int64_t c_step;    //            elements from a step to the next
  T* h_n;            // [N, P]     written: the state after each row's last step
  T* c_n;            // [N, H]     written; may be `c` when c_step is 0
  const T* zeros;    // [H]        the state that a segment begins from; may be null without resets
  T* workspace;      // forward_workspace(size) elements
};

template <class T>
struct BackwardArgs {
  Sizes size;
  Rows rows;
  bool reverse;
  const T* weight_hh;    // [4H, P]   null when T = 1: nothing flows from step to step
  const T* weight_hr;    // [P, H]    null: no projection
  const T* c0;           // [N, H]
  const T* gates;        // [T, N, 4H] activated
  const T* c;            // [T, N, H]
  const T* grad_y;       // [T, N, P]  may be null (zero)
  const T* grad_c;       // [T, N, H]  may be null (zero): gradient of every cell state
  const T* grad_h_n;     // [N, P]     may be null (zero)
  int64_t gates_stride;  // row strides: gates and grad_gates
  int64_t y_stride;      //              grad_y
  int64_t c_stride;      //              c and grad_c
  T* grad_gates;         // [T, N, 4H] written for the active rows of a step, zero elsewhere on entry
  T* grad_c0;            // [N, H]     holds the gradient of c_n; replaced by that of c0
  T* grad_p;             // [T, N, P]  written: gradient of the projected state; null without a projection
  T* h;                  // [T, N, H]  written: the state before its projection; null without a projection
  const T* zeros;        // [4H]       may be null without resets
  T* workspace;          // backward_workspace(size) elements
};

// Room for the packed weights, and for one step's state before its projection.
inline int64_t padded(int64_t n) {
  return (n + 31) / 32 * 32;
}
inline int64_t forward_workspace(const Sizes& s) {
  return 4 * padded(s.hidden) * s.outputs + padded(s.outputs) * s.hidden + s.batch * s.hidden;
}
inline int64_t backward_workspace(const Sizes& s) {
  return 4 * s.hidden * padded(s.outputs) + s.outputs * padded(s.hidden);
}

// Both run on at most `threads` threads and return the same bits for any number of them.
template <class T>
void forward(const ForwardArgs<T>& args, int threads);
template <class T>
void backward(const BackwardArgs<T>& args, int threads);

// Name of the instruction set that forward and backward use on this processor.
const char* instruction_set();

}  // namespace fusedlstm::cpu
