// What the passes over one direction of a layer read and write, from pointers.
//
// Sizes: T steps, N rows of the batch, S entries of all steps, I inputs, H hidden units, P outputs of a step
// (P = H without a projection). Every tensor is row-major. The entry of row n in step t of a sequence tensor
// [S, ...] is Rows::entry(t, n). A stride counts elements from one entry, or row of the batch, to the next.
// Gates are ordered i, f, g, o. As type names T is the compute type and W that of the stored weights.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <type_traits>

#include "plan.h"

namespace fusedlstm::cpu {

// 16-bit storage, converted to float when it is read.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
[[gnu::always_inline]] inline float widen(BFloat16 value) {
  return std::bit_cast<float>(uint32_t{value.bits} << 16);
}
template <class T>
[[gnu::always_inline]] inline T widen(T value) {
  return value;
}

// Which rows take part in which step. Rows are visited longest first, so those active in a step are a prefix.
struct Rows {
  const int64_t* length;  // [N]     steps of each row
  const int64_t* order;   // [N]     rows sorted by falling length
  const int64_t* active;  // [T]     how many rows are longer than t
  const int64_t* offset;  // [T + 1] first entry of each step: t * N, or the active rows of the steps before t
  const bool* resets;  // [T, N]  rows in which a segment begins at step t, from states of zero; may be null

  [[gnu::always_inline]] int64_t entry(int64_t t, int64_t row) const { return offset[t] + row; }
};

// In what x, h and y are stored, and what is kept of a step: bfloat16 as it is, and float16 widened.
template <class T, class W>
using StateType = std::conditional_t<std::is_same_v<W, BFloat16>, W, T>;

template <class T, class W>
struct ForwardArgs {
  using S = StateType<T, W>;

  Sizes size;
  Rows rows;
  bool reverse;                        // runs from each row's last step to its first
  std::span<const Range> time_blocks;  // in the direction's order
  const W* weight_ih;                  // [4H, I]
  const W* weight_hh;                  // [4H, P]
  const W* weight_hr;                  // [P, H]  null: no projection
  T* packed_ih;       // packed_weights(I, H) elements of workspace; null: weights are read unpacked
  T* packed_hh;       // packed_weights(P, H)
  const T* bias;      // [4H]       may be null
  const S* x;         // [S, I]
  const S* h0;        // [N, P]
  const void* zeros;  // [max(H, P)]  of T and of S: states before a segment; may be null without resets
  T* sums;            // [B, 4H]    workspace of one time block: sums of gates; null with input_in_step
  const int64_t* sums_offset;  // [T]  first entry of each step in it
  bool input_in_step;  // multiply x with W_ih in each step, not for a time block before its first step
  bool recompute;      // y is given, not written: only gates and cells are computed
  S* y;                // [S, P]       written for the active rows of a step
  int64_t y_stride;
  S* gates;  // [S, 4H]      written: activated, as store_kept writes them; null: not kept
  int64_t gates_stride;
  S* cells;  // [S, H]       written; null: not kept
  int64_t cells_stride;
  T* h;    // [N, H]       workspace: h of one step before its projection; null without one
  T* c;    // [N, H]       holds c0 on entry, and c_n in the end: overwritten in each step
  S* h_n;  // [N, P]       written: state after each row's last step; null with recompute
};

template <class T, class W>
struct BackwardArgs {
  Sizes size;
  Rows rows;
  bool reverse;
  std::span<const Range> time_blocks;  // from the direction's last steps to its first
  const W* weight_ih;                  // [4H, I]
  const W* weight_hh;                  // [4H, P]
  const W* weight_hr;                  // [P, H]     null: no projection
  const W* x;                          // [S, I]
  const W* h0;                         // [N, P]
  const W* c0;                         // [N, H]
  const void* zeros;    // [max(H, P)]  state before a segment, and of a row that takes no part in a step
  const W* y;           // [S, P]
  const W* gates;       // [S, 4H]    as the forward pass keeps them
  const W* cells;       // [S, H]
  const W* grad_y;      // [S, P]     may be null (zero)
  const W* grad_cells;  // [S, H]     may be null (zero)
  const W* grad_h_n;    // [N, P]     may be null (zero)
  int64_t gates_stride;
  int64_t y_stride;      // of y and grad_y
  int64_t cells_stride;  // of cells and grad_cells
  // Results; null: not computed. With T = 0 only grad_c0 and grad_h0 are set.
  T* grad_c0;  // [N, H]     holds the gradient of c_n on entry
  T* grad_x;   // [S, I]     with `reverse` added to what is there, the other direction's
  T* grad_h0;  // [N, P]
  W* grad_weight_ih;
  W* grad_weight_hh;
  W* grad_weight_hr;
  T* grad_bias;  // [4H]
  T* workspace;  // backward_workspace<T, W>(size, plan, projected) elements
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
  if (enters_segment(args, t, row)) return static_cast<decltype(args.h0)>(args.zeros);
  if (is_first(args, t, row)) return args.h0 + row * args.size.outputs;
  return args.y + args.rows.entry(args.reverse ? t + 1 : t - 1, row) * args.y_stride;
}
template <class T, class W>
[[gnu::always_inline]] inline const W* c_before(const BackwardArgs<T, W>& args, int64_t t, int64_t row) {
  if (enters_segment(args, t, row)) return static_cast<const W*>(args.zeros);
  if (is_first(args, t, row)) return args.c0 + row * args.size.hidden;
  return args.cells + args.rows.entry(args.reverse ? t + 1 : t - 1, row) * args.cells_stride;
}

// What one thread computes of a step: unit blocks (`Kernels` gives their width), and of the rows in order of
// length every row_stride-th from row_first.
template <class T>
struct Share {
  Range unit_blocks;
  int64_t row_first, row_stride;
  T* workspace;  // of this thread
};

// Memory of a backward pass. A time block has up to B entries, over which the weight gradients' products sum.
// Gradients are zero for a row that takes no part in a step. Factors of products are rounded to W.
template <class T, class W>
struct BackwardWorkspace {
  T *panels_ih, *panels_hh, *panels_hr;    // W_ih [4H, I], W_hh [4H, P], W_hr [P, H]; null: not packed
  W* grad_gates_next;                      // [N, 4H]  of the step after the block, in the direction's order
  W* grad_gates_first;                     // [N, 4H]  of each row's first step
  W* grad_gates;                           // [B, 4H]
  W *grad_p, *h;                           // [B, P], [B, H]  outputs and h of a layer with a projection
  W *grad_gates_t, *grad_p_t;              // [4H, B], [P, B]
  T *panels_x, *panels_h_prev, *panels_h;  // x [B, I], state before each step [B, P], h [B, H]
  // Sums of the gradients of W_ih, W_hh and W_hr before the last time block; null: T is W, or there is one
  // block.
  T *sums_ih, *sums_hh, *sums_hr;
  T* row_blocks;      // [threads, row_block]
  int64_t row_block;  // elements of a thread's row block
  int64_t size;       // elements of all
};

// Elements of W_ih (depth I) or W_hh (depth P) when packed.
int64_t packed_weights(int64_t depth, int64_t hidden);
template <class T, class W>
PackedFrom packed_from();
template <class T, class W>
int64_t forward_workspace(const Sizes& size, const ThreadPlan& plan);
template <class T, class W>
int64_t backward_workspace(const Sizes& size, const ThreadPlan& plan, bool projected);

// Results have the same bits for any number of threads. `directions` points to `count` arguments of the same
// sizes, `workspace` to forward_workspace(size, plan) elements.
template <class T, class W>
void forward(const ForwardArgs<T, W>* directions, int64_t count, T* workspace, const ThreadPlan& plan);
template <class T, class W>
void backward(const BackwardArgs<T, W>& args, const ThreadPlan& plan);

}  // namespace fusedlstm::cpu
