// What the passes over one direction of a layer read and write, from pointers.
//
// Sizes: T steps, N rows of the batch, I inputs, H hidden units, P outputs of a step (P = H without a
// projection). Every tensor is row-major, and step t + 1 begins N rows after step t. A stride counts elements
// from one row of the batch to the next. Gates are ordered i, f, g, o. As type names T is the compute type
// and W that of the stored weights.
#pragma once

#include <cstdint>

#include "plan.h"

namespace fusedlstm::cpu {

// 16-bit storage, converted to float when it is read.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Which rows take part in which step. Rows are visited longest first, so those active in a step are a prefix.
struct Rows {
  const int64_t* length;  // [N]     steps of each row
  const int64_t* order;   // [N]     rows sorted by falling length
  const int64_t* active;  // [T]     how many rows are longer than t
  const bool* resets;  // [T, N]  rows in which a segment begins at step t, from states of zero; may be null
};

template <class T, class W>
struct ForwardArgs {
  Sizes size;
  Rows rows;
  bool reverse;         // runs from each row's last step to its first
  const W* weight_ih;   // [4H, I]
  const W* weight_hh;   // [4H, P]
  const W* weight_hr;   // [P, H]  null: no projection
  T* packed_ih;         // packed_weights(I, H) elements of workspace; null: weights are read unpacked
  T* packed_hh;         // packed_weights(P, H)
  const T* bias;        // [4H]       may be null
  const T* x;           // [T, N, I]
  const T* h0;          // [N, P]
  const T* c0;          // [N, H]
  const T* zeros;       // [max(H, P)]  state before a segment; may be null without resets
  T* gates;             // [gates_steps, N, 4H]  step t is at t % gates_steps
  int64_t gates_steps;  //              T, or the plan's time block
  int64_t gates_stride;
  bool keep_gates;  // write the activated gates; without it `gates` is workspace, unused with input_in_step
  bool input_in_step;  // multiply x with W_ih in each step, not for a time block before its first step
  bool recompute;      // y is given, not written: only gates and cells are computed
  T* y;                // [T, N, P]    written for the active rows of a step
  int64_t y_stride;
  T* cells;  // [T, N, H]    written; [N, H], overwritten in each step, if cells_step is 0
  int64_t cells_stride;
  int64_t cells_step;  //              elements from one step to the next
  T* h;                // [N, H]       workspace: h of one step before its projection; null without one
  T* h_n;              // [N, P]       written: state after each row's last step; null with recompute
  T* c_n;              // [N, H]       written; may be `cells` if cells_step is 0; null with recompute
};

template <class T>
struct BackwardArgs {
  Sizes size;
  Rows rows;
  bool reverse;
  const T* weight_ih;   // [4H, I]
  const T* weight_hh;   // [4H, P]
  const T* weight_hr;   // [P, H]     null: no projection
  const T* x;           // [T, N, I]
  const T* h0;          // [N, P]
  const T* c0;          // [N, H]
  const T* zeros;       // [4H]
  const T* y;           // [T, N, P]
  const T* gates;       // [T, N, 4H] activated
  const T* cells;       // [T, N, H]
  const T* grad_y;      // [T, N, P]  may be null (zero)
  const T* grad_cells;  // [T, N, H]  may be null (zero)
  const T* grad_h_n;    // [N, P]     may be null (zero)
  int64_t gates_stride;
  int64_t y_stride;      // of y and grad_y
  int64_t cells_stride;  // of cells and grad_cells
  // Results; null: not computed. With T = 0 only grad_c0 and grad_h0 are set.
  T* grad_c0;  // [N, H]     holds the gradient of c_n on entry
  T* grad_x;   // [T, N, I]  with `reverse` added to what is there, the other direction's
  T* grad_h0;  // [N, P]
  T* grad_weight_ih;
  T* grad_weight_hh;
  T* grad_weight_hr;
  T* grad_bias;  // [4H]
  T* workspace;  // backward_workspace(size, plan, projected) elements
};

// Whether t is the first or last step of a row in the direction's order.
template <class Args>
[[gnu::always_inline]] inline bool is_first(const Args& args, int64_t t, int64_t row) {
  return t == (args.reverse ? args.rows.length[row] - 1 : 0);
}
template <class Args>
[[gnu::always_inline]] inline bool is_last(const Args& args, int64_t t, int64_t row) {
  return t == (args.reverse ? 0 : args.rows.length[row] - 1);
}
// Whether step t starts from states of zero. In the reverse direction that is so if step t + 1 begins the
// next segment.
template <class Args>
[[gnu::always_inline]] inline bool enters_segment(const Args& args, int64_t t, int64_t row) {
  if (args.rows.resets == nullptr) return false;
  const int64_t begin = args.reverse ? t + 1 : t;
  return begin < args.rows.length[row] && args.rows.resets[begin * args.size.batch + row];
}
// The states before step t.
template <class Args>
[[gnu::always_inline]] inline auto h_before(const Args& args, int64_t t, int64_t row) -> decltype(args.h0) {
  if (enters_segment(args, t, row)) return args.zeros;
  if (is_first(args, t, row)) return args.h0 + row * args.size.outputs;
  return args.y + ((args.reverse ? t + 1 : t - 1) * args.size.batch + row) * args.y_stride;
}
template <class Args>
[[gnu::always_inline]] inline auto c_before(const Args& args, int64_t t, int64_t row, int64_t cells_step)
    -> decltype(args.c0) {
  if (enters_segment(args, t, row)) return args.zeros;
  if (is_first(args, t, row)) return args.c0 + row * args.size.hidden;
  return args.cells + (args.reverse ? t + 1 : t - 1) * cells_step + row * args.cells_stride;
}

// Items [begin, end).
struct Range {
  int64_t begin, end;
};

// What one thread computes of a step: unit blocks (`Kernels` gives their width), and of the rows in order of
// length every row_stride-th from row_first.
template <class T>
struct Share {
  Range unit_blocks;
  int64_t row_first, row_stride;
  T* workspace;  // of this thread
};

// Memory of a backward pass. B steps of a time block are `depth` = B * N rows of the weight gradients'
// products. Gradients are zero for a row that takes no part in a step.
template <class T>
struct BackwardWorkspace {
  T *panels_ih, *panels_hh, *panels_hr;    // W_ih [4H, I], W_hh [4H, P], W_hr [P, H]; null: not packed
  T* grad_gates_next;                      // [N, 4H]  of the step after the block, in the direction's order
  T* grad_gates_first;                     // [N, 4H]  of each row's first step
  T* grad_gates;                           // [B, N, 4H]
  T *grad_p, *h;                           // [B, N, P], [B, N, H]  outputs and h of a layer with a projection
  T *grad_gates_t, *grad_p_t;              // [4H, depth], [P, depth]
  T *panels_x, *panels_h_prev, *panels_h;  // x [depth, I], state before each step [depth, P], h [depth, H]
  int64_t size;                            // elements of all
};

// Elements of W_ih (depth I) or W_hh (depth P) when packed.
int64_t packed_weights(int64_t depth, int64_t hidden);
template <class T, class W>
int64_t forward_workspace(const Sizes& size, const ThreadPlan& plan);
int64_t backward_workspace(const Sizes& size, const ThreadPlan& plan, bool projected);

// Results have the same bits for any number of threads. `directions` points to `count` arguments of the same
// sizes, `workspace` to forward_workspace(size, plan) elements.
template <class T, class W>
void forward(const ForwardArgs<T, W>* directions, int64_t count, T* workspace, const ThreadPlan& plan);
template <class T>
void backward(const BackwardArgs<T>& args, const ThreadPlan& plan);

}  // namespace fusedlstm::cpu
