// The sequential part of a layer on a GPU: one persistent launch where the plan says so and the device takes
// it, else a loop over steps.
#pragma once

#include "work.h"

namespace fusedlstm::cuda {

struct ForwardResult {
  Tensor y, h_n, c_n, cell, gates;
};

// Runs all steps: `gates` holds the input's share; what `out` has room for is written, h_n and c_n are made.
void run_recurrence(const Work& work, const Tensor& weight_hh, ForwardResult& out, bool keep_gates);

// What the recurrence leaves for the products over all of them.
struct Gradients {
  Tensor gates;                // [T, N, D*4H]
  Tensor first_gates;          // [D, N, 4H]    of each row's first step; zero where h0 does not reach it
  Tensor c0;                   // [D, N, H]
  std::optional<Tensor> bias;  // [D, groups, 4H] compute, where the launch has summed them up
  std::optional<Tensor> projected,
      unprojected;  // [D, T, N, P] gradient and [D, T, N, H] value, in order of steps
};

// The same backward: `out` comes with memory for gates, the others are made.
void run_recurrence_backward(const Work& work, const Incoming& grad, const Saved& saved,
                             const Tensor& weight_hh, Gradients& out);

}  // namespace fusedlstm::cuda
