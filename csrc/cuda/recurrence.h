// The sequential part of a layer on a GPU: one persistent launch where the plan says so and the device takes
// it, else a loop over steps.
#pragma once

#include "layer_call.h"

namespace fusedlstm::cuda {

// Runs all steps. `gates` [S, D*4H] compute holds the input's share of the gates; y and, as far as they are
// kept, the cells and gates in `out` are written, h_n and c_n are made.
void run_forward_steps(const LayerCall& call, const Tensor& weight_hh, const Tensor& gates,
                       ForwardResults& out);

// What the backward recurrence leaves to the products over all steps.
struct RecurrenceGradients {
  Tensor gates;                // a sequence of D*4H columns
  Tensor gates_first;          // [D, N, 4H]  of each row's first step; zero where h0 does not reach it
  Tensor c0;                   // [D, N, H]
  std::optional<Tensor> bias;  // [D, groups, 4H] compute   where the persistent launch has summed them
  // With a projection: the gradient of the projected states, and the states before their projection.
  std::optional<Tensor> projected, unprojected;  // [D, S, P], [D, S, H]
};
RecurrenceGradients run_backward_steps(const LayerCall& call, const OutputGradients& grads,
                                       const SavedForBackward& saved, const Tensor& weight_hh);

}  // namespace fusedlstm::cuda
