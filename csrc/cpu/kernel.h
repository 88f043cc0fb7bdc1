// What one thread does in one step, compiled once per instruction set (kernel_*.cpp).
#pragma once

#include "recurrence.h"

namespace fusedlstm::cpu {

// Terms of a panel's sum between two additions to memory: such a piece of half a panel, two vectors wide,
// fits the L1 cache, and the rounding error grows with this length rather than with the whole one.
constexpr int64_t kPanelTerms = 128;

// A thread's share of a step: blocks of units (or of columns), and every stride-th active row from `first`.
template <class T>
struct Share {
  int64_t block_begin, block_end;
  int64_t row_first, row_stride;
  T* room;  // of the thread's own
};

// What backward works on: weights in panels, and the gradients of a chunk of steps, dense in its steps and
// rows, zero where a row takes no part.
template <class T>
struct BackwardWork {
  T *panels_ih, *panels_hh, *panels_hr;    // of W_ih [4H, I], W_hh [4H, P], W_hr [P, H]
  T* after;                                // [N, 4H]  gradient of the gates of the step done last
  T* first;                                // [N, 4H]  of each row's first step
  T* grad_gates;                           // [chunk, N, 4H]
  T *grad_p, *h;                           // [chunk, N, P], [chunk, N, H]  with a projection
  T *grad_gates_t, *grad_p_t;              // [4H, terms], [P, terms], where terms = chunk * N
  T *panels_x, *panels_before, *panels_h;  // of the chunk's inputs, states before each step, and h
};

// Steps [begin, end).
struct Chunk {
  int64_t begin, end;
};

template <class T, class W>
struct Kernel {
  int64_t lanes;          // units of a block of the forward pass, columns of one of its projection
  int64_t panel_columns;  // of a panel, and units or columns of a block of the backward pass
  int64_t near_terms;     // of panels that a core's own cache, of 512 KiB or more, holds beside other things
  int64_t (*room)(const Sizes&);  // elements that the forward pass of a thread needs

  // Panels [begin, end) of W_ih or W_hh, each with all four gates of a block of units.
  void (*pack_gates)(const W* weight, int64_t hidden, int64_t depth, int64_t begin, int64_t end, T* packed);
  // The input's share of the gates, with their biases, of all steps of a chunk.
  void (*input_gates)(const ForwardArgs<T, W>&, const Chunk&, const Share<T>&);
  // Gates, cell state and hidden state of step t; the latter to h with a projection, else to y.
  void (*forward_step)(const ForwardArgs<T, W>&, int64_t t, const Share<T>&);
  // y's step from h.
  void (*project)(const ForwardArgs<T, W>&, int64_t t, const Share<T>&);

  // Panels [begin, end) of a matrix of `depth` rows.
  void (*pack_panels)(const T* const* rows, int64_t depth, int64_t columns, int64_t begin, int64_t end,
                      T* panels);
  // out [columns, depth]: columns [begin, end) of a matrix of `depth` rows, as rows.
  void (*transpose)(const T* const* rows, int64_t depth, int64_t begin, int64_t end, T* out);
  // Gradient of the projected state of step t, from the outputs and from the step that followed.
  void (*backward_project)(const BackwardArgs<T>&, const BackwardWork<T>&, const Chunk&, int64_t t,
                           const Share<T>&);
  // Gradient of the gates of step t.
  void (*backward_step)(const BackwardArgs<T>&, const BackwardWork<T>&, const Chunk&, int64_t t,
                        const Share<T>&);
  // out[r, c] = dot(row r of a, column c of the panels), or += with `adds`; `piece` terms are summed in a
  // row.
  void (*product)(const T* a, int64_t a_stride, int64_t rows, const T* panels, int64_t columns, int64_t depth,
                  int64_t piece, bool adds, T* out, int64_t out_stride);
};

template <class T, class W>
const Kernel<T, W>& kernel_plain();
template <class T, class W>
const Kernel<T, W>& kernel_avx2();
template <class T, class W>
const Kernel<T, W>& kernel_avx512();
const Kernel<float, BFloat16>& kernel_amx();

}  // namespace fusedlstm::cpu
