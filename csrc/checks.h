// The arguments of one layer, unpacked and checked. Python gives users their errors (fusedlstm/modules.py);
// these checks keep a direct caller of the operators from reading past a tensor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "tensors.h"

namespace fusedlstm {

inline std::string shape(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

// Runs for every tensor of every call, so that text is made only of what fails.
inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  const auto sizes = tensor.sizes();
  if (std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) return;
  std::string wanted;
  for (const int64_t size : expected) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(false, name, " must be [", wanted, "], got ", shape(tensor));
}

inline void check_like(const char* name, const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name, " must have the dtype of input");
  STD_TORCH_CHECK(tensor.device() == input.device(), name, " must be on the device of input");
}

// Weights arrive as nn.LSTM orders them: for each direction weight_ih, weight_hh, then bias_ih and bias_hh
// if there are biases, then weight_hr if there is a projection.
struct Inputs {
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
  std::optional<Tensor> lengths, resets;
};

// Dense, x and states of one type, weights of another.
inline Inputs prepare(const Inputs& in, ScalarType type, ScalarType weight_type) {
  return {prepare(in.x, type),
          prepare(in.h0, type),
          prepare(in.c0, type),
          prepare(in.weights, weight_type),
          prepare(in.lengths, ScalarType::Long),
          prepare(in.resets, ScalarType::Bool)};
}

// The sizes of a layer, and its weights by name.
struct Layer {
  int64_t steps, batch, input, hidden, outputs, directions;  // T, N, I, H, P, D
  bool biased, projected;
  const std::vector<Tensor>& weights;

  explicit Layer(const Inputs& inputs) : Layer(inputs, inputs.weights) {}
  // Checks the inputs as they came, and gives names to the weights made of theirs.
  Layer(const Inputs& inputs, const std::vector<Tensor>& prepared) : weights(prepared) {
    const auto& [x, h0, c0, _, lengths, resets] = inputs;
    STD_TORCH_CHECK(x.dim() == 3, "input must be [steps, batch, input_size], got ", shape(x));
    STD_TORCH_CHECK(c0.dim() == 3, "c0 must be [directions, batch, hidden_size], got ", shape(c0));
    STD_TORCH_CHECK(h0.dim() == 3, "h0 must be [directions, batch, outputs], got ", shape(h0));
    steps = x.size(0), batch = x.size(1), input = x.size(2);
    directions = c0.size(0), hidden = c0.size(2), outputs = h0.size(2);
    STD_TORCH_CHECK(directions == 1 || directions == 2, "c0 must have 1 or 2 directions, got ", directions);
    projected = outputs != hidden;
    const int64_t each = static_cast<int64_t>(inputs.weights.size()) / directions;
    biased = each >= 4;
    STD_TORCH_CHECK(each * directions == static_cast<int64_t>(inputs.weights.size()) &&
                        each == 2 + 2 * biased + projected,
                    "weights must hold ", projected ? "3 or 5" : "2 or 4", " tensors for each of ",
                    directions, " directions, got ", inputs.weights.size());
    check_shape("h0", h0, {directions, batch, outputs});
    check_shape("c0", c0, {directions, batch, hidden});
    check_like("h0", h0, x);
    check_like("c0", c0, x);
    for (int64_t d = 0; d < directions; ++d) {
      const auto given = [&](int64_t i) -> const Tensor& { return inputs.weights[first_weight(d) + i]; };
      check_shape("weight_ih", given(0), {4 * hidden, input});
      check_shape("weight_hh", given(1), {4 * hidden, outputs});
      if (projected) check_shape("weight_hr", given(each - 1), {outputs, hidden});
      if (biased) {
        check_shape("bias_ih", given(2), {4 * hidden});
        check_shape("bias_hh", given(3), {4 * hidden});
      }
    }
    for (const Tensor& weight : inputs.weights) check_like("weights", weight, x);
    if (lengths) {
      check_shape("lengths", *lengths, {batch});
      STD_TORCH_CHECK(lengths->scalar_type() == ScalarType::Long, "lengths must be int64");
      STD_TORCH_CHECK(lengths->device() == x.device(), "lengths must be on the device of input");
    }
    if (resets) {
      check_shape("resets", *resets, {steps, batch});
      STD_TORCH_CHECK(resets->scalar_type() == ScalarType::Bool, "resets must be bool");
      STD_TORCH_CHECK(resets->device() == x.device(), "resets must be on the device of input");
    }
  }

  int64_t weights_per_direction() const { return 2 + 2 * biased + projected; }
  const Tensor& weight_ih(int64_t d) const { return weights[d * weights_per_direction()]; }
  const Tensor& weight_hh(int64_t d) const { return weights[d * weights_per_direction() + 1]; }
  const Tensor& bias_ih(int64_t d) const { return weights[d * weights_per_direction() + 2]; }
  const Tensor& bias_hh(int64_t d) const { return weights[d * weights_per_direction() + 3]; }
  const Tensor& weight_hr(int64_t d) const { return weights[(d + 1) * weights_per_direction() - 1]; }

  // Position in `weights` of direction d's first tensor, weight_ih.
  int64_t first_weight(int64_t d) const { return d * weights_per_direction(); }
  std::vector<Tensor> of_each_direction(const Tensor& (Layer::*weight)(int64_t) const) const {
    std::vector<Tensor> all;
    for (int64_t d = 0; d < directions; ++d) all.push_back((this->*weight)(d));
    return all;
  }
};

// Gradients that arrive at a layer's outputs; what is absent is zero.
struct Incoming {
  std::optional<Tensor> y, h_n, c_n, cell;
};
// What the forward pass kept: every output and cell state, the activated gates.
struct Saved {
  Tensor y, cell, gates;
};

inline void check_outputs(const Layer& layer, const Tensor& y) {
  check_shape("y", y, {layer.steps, layer.batch, layer.directions * layer.outputs});
}

inline void check_backward(const Layer& layer, const Incoming& grad, const Saved& saved,
                           const std::vector<int64_t>& need_weights) {
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  check_outputs(layer, saved.y);
  check_shape("cell", saved.cell, {T, N, D * H});
  check_shape("gates", saved.gates, {T, N, D * 4 * H});
  if (grad.y) check_shape("grad_y", *grad.y, {T, N, D * P});
  if (grad.h_n) check_shape("grad_h_n", *grad.h_n, {D, N, P});
  if (grad.c_n) check_shape("grad_c_n", *grad.c_n, {D, N, H});
  if (grad.cell) check_shape("grad_cell", *grad.cell, {T, N, D * H});
  STD_TORCH_CHECK(need_weights.size() == layer.weights.size(), "need_weights must have ",
                  layer.weights.size(), " entries, got ", need_weights.size());
}

}  // namespace fusedlstm
