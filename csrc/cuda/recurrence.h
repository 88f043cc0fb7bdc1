// The sequential part of a layer on a GPU: one persistent launch where the plan says so and the device takes
// it, else a loop over steps.
#pragma once

#include "work.h"

namespace fusedlstm::cuda {

struct ForwardResult {
  Tensor y, h_n, c_n, cell, gates;
};

// Runs all steps: `gates` holds the input's share, `c` (compute) c0 and then c_n, `h_n` h0 and then h_n; what
// `out` has room for is written.
void run_recurrence(const Work& work, const Tensor& weight_hh, const std::optional<Tensor>& bias,
                    const Tensor& c, const ForwardResult& out, bool keep_gates);

// What the recurrence leaves for the products over all of them.
struct Gradients {
  Tensor gates;                // [T, N, D*4H]
  Tensor first_gates;          // [D, N, 4H]    of each row's first step; zero where h0 does not reach it
  std::optional<Tensor> bias;  // [D, groups, 4H] compute, where the launch has summed them up
  std::optional<Tensor> projected,
      unprojected;  // [D, T, N, P] gradient and [D, T, N, H] value, in order of steps
};

// The same backward: `grad_c` (compute) holds the gradient of c_n and then that of c0. `out` comes with
// memory for gates and, zero, for first_gates.
void run_recurrence_backward(const Work& work, const Incoming& grad, const Saved& saved,
                             const Tensor& weight_hh, const Tensor& grad_c, Gradients& out);

}  // namespace fusedlstm::cuda
