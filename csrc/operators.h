// The operators, once for every backend. They check their arguments; a backend computes. It is a struct with
// four static functions:
//
//   ScalarType kept_type(const Tensor& x)   of cells and gates; how gates are written is the backend's affair
//   ForwardResults forward(const LayerInputs&, Keep)
//   RecomputedTensors recompute(const LayerInputs&, const Tensor& y)
//   InputGradients backward(const LayerInputs&, const OutputGradients&, const SavedForBackward&,
//                           const NeededGradients&)
#pragma once

#include <tuple>

#include "layer.h"

namespace fusedlstm {

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> lstm_inference(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                                  const std::vector<Tensor>& weights,
                                                  const std::optional<Tensor>& lengths,
                                                  const std::optional<Tensor>& resets,
                                                  const std::optional<Tensor>& batch_sizes, bool allow_tf32) {
  const LayerInputs inputs{x, h0, c0, weights, lengths, resets, batch_sizes, allow_tf32};
  check_inputs(inputs);
  const ForwardResults out = Backend::forward(inputs, {});
  return {out.y, out.h_n, out.c_n};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(
    const Tensor& x, const Tensor& h0, const Tensor& c0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets,
    const std::optional<Tensor>& batch_sizes, bool allow_tf32, bool keep_cells, bool keep_gates) {
  const LayerInputs inputs{x, h0, c0, weights, lengths, resets, batch_sizes, allow_tf32};
  check_inputs(inputs);
  const ForwardResults out = Backend::forward(inputs, {keep_cells, keep_gates});
  const ScalarType type = Backend::kept_type(x);
  return {out.y, out.h_n, out.c_n, out.cells ? *out.cells : allocate(x, {0}, type),
          out.gates ? *out.gates : allocate(x, {0}, type)};
}

template <class Backend>
std::tuple<Tensor, Tensor> lstm_recompute(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                          const std::vector<Tensor>& weights,
                                          const std::optional<Tensor>& lengths,
                                          const std::optional<Tensor>& resets,
                                          const std::optional<Tensor>& batch_sizes, bool allow_tf32,
                                          const Tensor& y) {
  const LayerInputs inputs{x, h0, c0, weights, lengths, resets, batch_sizes, allow_tf32};
  check_inputs(inputs);
  check_outputs(inputs, y);
  const RecomputedTensors out = Backend::recompute(inputs, y);
  return {out.cells, out.gates};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cells, const Tensor& x,
    const Tensor& h0, const Tensor& c0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets,
    const std::optional<Tensor>& batch_sizes, bool allow_tf32, const Tensor& y, const Tensor& cells,
    const Tensor& gates, bool need_x, bool need_h0, const std::vector<int64_t>& need_weights) {
  const LayerInputs inputs{x, h0, c0, weights, lengths, resets, batch_sizes, allow_tf32};
  const OutputGradients grads{grad_y, grad_h_n, grad_c_n, grad_cells};
  const SavedForBackward saved{y, cells, gates};
  check_backward(inputs, grads, saved, Backend::kept_type(x));
  if (need_weights.size() != weights.size())
    fail("need_weights must have ", weights.size(), " entries, got ", need_weights.size());
  const InputGradients out = Backend::backward(inputs, grads, saved, {need_x, need_h0, need_weights});
  return {out.x, out.h0, out.c0, out.weights};
}

template <class Backend, class Library>
void register_operators(Library& library) {
  library.impl("lstm_inference", TORCH_BOX(&lstm_inference<Backend>));
  library.impl("lstm_forward", TORCH_BOX(&lstm_forward<Backend>));
  library.impl("lstm_recompute", TORCH_BOX(&lstm_recompute<Backend>));
  library.impl("lstm_backward", TORCH_BOX(&lstm_backward<Backend>));
}

}  // namespace fusedlstm
