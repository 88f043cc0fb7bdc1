// What one thread does in one step, compiled once per instruction set (kernel_*.cpp).
#pragma once

#include "recurrence.h"

namespace fusedlstm::cpu {

// A thread's share of a step: blocks of units (or of columns), and every stride-th active row from `first`.
struct Share {
  int64_t block_begin, block_end;
  int64_t row_first, row_stride;
};

template <class T>
struct Kernel {
  const char* instruction_set;
  int64_t units_per_block;    // of forward_step: a block holds all four gates of its units
  int64_t columns_per_block;  // of project and of the backward steps

  // Copy a share's blocks of the weights into the order in which the steps read them.
  void (*pack_gates)(const ForwardArgs<T>&, const Share&, T* packed);                        // W_hh
  void (*pack_rows)(const T* weight, int64_t rows, int64_t depth, const Share&, T* packed);  // [rows, depth]
  void (*pack_columns)(const T* weight, int64_t depth, int64_t columns, const Share&,
                       T* packed);  // [depth, columns]

  // Gates, cell state and hidden state of step t. h is y's step, or scratch [N, H] with a projection.
  void (*forward_step)(const ForwardArgs<T>&, int64_t t, const Share&, const T* packed, T* h,
                       int64_t h_stride);
  // y's step from the hidden state before its projection, h [N, H].
  void (*project)(const ForwardArgs<T>&, int64_t t, const Share&, const T* packed, const T* h);

  // Gradient of the projected state of step t, from the outputs and from the step that followed.
  void (*backward_project)(const BackwardArgs<T>&, int64_t t, const Share&, const T* packed);
  // Gradient of the gates of step t; `packed` is W_hr with a projection, else W_hh.
  void (*backward_step)(const BackwardArgs<T>&, int64_t t, const Share&, const T* packed);
};

template <class T>
const Kernel<T>& kernel_plain();
template <class T>
const Kernel<T>& kernel_avx2();
template <class T>
const Kernel<T>& kernel_avx512();

}  // namespace fusedlstm::cpu
