// The sequential part of one layer on a GPU, one launch for each step: what its kernels read and write.
//
// T steps, N rows of the batch, H hidden units, P outputs of a step (P = H without a projection), D
// directions. Step s is the s-th that a direction takes: t = s in the first direction, t = T-1-s in the
// reverse one. A row takes part in the steps with t below its length. S entries are those of all steps: T *
// N, or in a packed batch those that take part. Tensors are dense and row-major, gates ordered i, f, g, o.
// "io" is the type of the layer's input, "compute" float64 for float64 and float32 for the others.
#pragma once

#include <cstdint>

#include "plan.h"
#include "sizes.h"
#include "stream.h"

namespace fusedlstm::cuda {

struct ForwardArgs {
  KernelSizes size;
  const void* bias;       // [D, 4H] compute        sum of both biases; null without biases
  const void* recurrent;  // [D, N, 4H] compute     product of the state before this step and W_hh
  const void* gates;      // [S, D, 4H] compute  product of the input and W_ih
  void* kept;             // written: the activated gates, zero past a row's length; may be `gates`, or null
  void* cells;            // [S, D, H] io        written; may be null (not wanted)
  void* c_t;              // [D, N, H] compute      cell state before the step, replaced by that after it
  void* y;                // [S, D, P] io        written; zero past a row's length
  // The hidden state before the step. Without a projection it is replaced by that after the step. With one it
  // is set to zero in the rows that take part, and the caller then adds the product of unprojected and W_hr.
  void* h;  // [D, N, P] io
  // What the projection takes, written; zero in rows that take no part. Null without a projection.
  void* unprojected;  // [D, N, H] io
};

struct BackwardArgs {
  KernelSizes size;
  const void* gates;       // activated, as in kept.cuh
  const void* cells;       // [S, D, H] io
  const void* c0;          // [D, N, H] io
  const void* grad_cells;  // [S, D, H] io        of every cell state; may be null (zero)
  const void* grad_y;      // [S, D, P] io        may be null (zero); null with a projection
  const void* grad_h_n;    // [D, N, P] io           may be null (zero); null with a projection
  const void* grad_h_t;    // [D, N, H] compute      passed back by the next step; may be null (zero)
  void* grad_c_t;          // [D, N, H] compute      of the state after the step, replaced by that before it
  void* grad_gates;        // [S, D, 4H] io       written; zero past a row's length
  // Gradient of the gates that is passed to the previous step: this step's grad_gates, and zero where the
  // step enters a segment. Unchanged in rows that take no part.
  void* grad_gates_step;  // [D, N, 4H] io
  void* unprojected;      // [D, S, H] io        written: the state before its projection
};

// One step of all cells. With a projection, a last call with step = T stores the output of step T-1.
void forward_cells(const ForwardArgs& args, int64_t step, Type io, const StepwisePlan& plan, Stream stream);
void backward_cells(const BackwardArgs& args, int64_t step, Type io, const StepwisePlan& plan, Stream stream);

// Recomputes the activated gates and the cell states of all steps in one launch. `gates` holds the sum of
// both products; `recurrent`, `y`, `h` and `unprojected` are null.
void recompute_cells(const ForwardArgs& args, Type io, const StepwisePlan& plan, Stream stream);

// before [D, S, P] io: the hidden state before each step; zero past a row's length and where a
// segment begins.
void states_before(const KernelSizes& size, const void* h0, const void* y, void* before, Type io,
                   Stream stream);
// bias [4H] compute: the sum of both, [4H] io.
void sum_biases(const void* bias_ih, const void* bias_hh, void* bias, int64_t gates, Type io, Stream stream);
// grad_projected [D, S, P] io: the part of the projected states' gradient that comes
// from the outputs.
void seed_projected(const KernelSizes& size, const void* grad_y, const void* grad_h_n, void* grad_projected,
                    Type io, Stream stream);
// grad_h0 [D, N, P] io, the product of the first steps' gates, in rows where no step takes h0: grad_h_n (may
// be null, zero) without steps, where h_n is h0, and zero behind a reset.
void finish_grad_h0(const KernelSizes& size, const void* grad_h_n, void* grad_h0, Type io, Stream stream);

}  // namespace fusedlstm::cuda
