// The sequential part of one layer on a GPU, one step a launch: what its kernels read and write.
//
// T steps, N rows of the batch, H hidden units, P outputs of a step (P = H without a projection), D
// directions. Step s is the s-th that a direction takes: t = s in the first direction, t = T-1-s in the
// reverse one. A row takes part in the steps with t below its length. Tensors are dense and row-major, gates
// ordered i, f, g, o. "io" is the type of the layer's input, "compute" float64 for float64 and float32 for
// the others.
#pragma once

#include <cstdint>

#include "../plan.h"
#include "sizes.h"
#include "stream.h"

namespace fusedlstm::cuda {

struct ForwardArgs {
  Sizes size;
  const void* bias;       // [D, 4H] compute        sum of both biases; null without biases
  const void* recurrent;  // [D, N, 4H] compute     product of the state before this step and W_hh
  void* gates;            // [T, N, D, 4H] compute  product of the input and W_ih
  bool keep_gates;        // whether the activated gates take their place
  void* cell;             // [T, N, D, H] compute   written; null: not wanted
  void* c;                // [D, N, H] compute      state before the step, replaced by that after it
  void* y;                // [T, N, D, P] io        written; zero past a row's length
  void* h;                // [D, N, P] io           replaced like c without a projection
  // With a projection: the state of this step before it, written, zero in rows that take no part; null
  // without. The caller then adds its product with W_hr to h, in which the step leaves zero in all other
  // rows.
  void* unprojected;  // [D, N, H] io
};

struct BackwardArgs {
  Sizes size;
  const void* gates;      // [T, N, D, 4H] compute  activated
  const void* cell;       // [T, N, D, H] compute
  const void* c0;         // [D, N, H] io
  const void* grad_cell;  // [T, N, D, H] compute   of every cell state; may be null (zero)
  const void* grad_y;     // [T, N, D, P] io        may be null (zero); null with a projection
  const void* grad_h_n;   // [D, N, P] io           may be null (zero); null with a projection
  const void* grad_h;     // [D, N, H] compute      from the step that followed; null: zero
  void* grad_c;           // [D, N, H] compute      of the state after this step, replaced by that before it
  void* grad_gates;       // [T, N, D, 4H] io       written; zero past a row's length
  // This step's again, as the state before it feels them: zero where the step enters a segment. Rows that
  // take no part keep theirs.
  void* grad_gates_step;  // [D, N, 4H] io
  void* unprojected;      // [D, T, N, H] io        written in order of steps: the state before its projection
};

// One step of all cells. With a projection a last call with step = T stores the last step's output.
void forward_cells(const ForwardArgs& args, int64_t step, Type io, const Stepwise& plan, Stream stream);
void backward_cells(const BackwardArgs& args, int64_t step, Type io, const Stepwise& plan, Stream stream);

// What forward_cells kept, of all steps in one launch: `gates` holds the products of the input and of the
// states before each step, `recurrent`, `y`, `h` and `unprojected` are null.
void recompute_cells(const ForwardArgs& args, Type io, const Stepwise& plan, Stream stream);

// before [D, T, N, P] io: the state from which each step started; zero past a row's length.
void states_before(const Sizes& size, const void* h0, const void* y, void* before, Type io, Stream stream);
// bias [4H] compute: the sum of both, [4H] io.
void sum_biases(const void* bias_ih, const void* bias_hh, void* bias, int64_t gates, Type io, Stream stream);
// Gradient of the projected states [D, T, N, P] io, in order of steps, as far as it comes from the outputs
// alone.
void seed_projected(const Sizes& size, const void* grad_y, const void* grad_h_n, void* grad_projected,
                    Type io, Stream stream);
// grad_h0 [D, N, P] io: grad_h_n in rows of no steps, which hand their state through, and zero in the others.
void seed_grad_h0(const Sizes& size, const void* grad_h_n, void* grad_h0, Type io, Stream stream);

}  // namespace fusedlstm::cuda
