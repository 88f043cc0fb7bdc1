// One layer on a GPU: the operators, the tensors, and the matrix products over all steps before and after the
// recurrence.
#include <tuple>

#include "recurrence.h"
#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

using torch::stable::clone;
using torch::stable::new_zeros;
using torch::stable::zero_;

// [T, N, D*4H]: the input's share of the gates, without biases.
Tensor input_gates(const Work& work) {
  const Layer& layer = work.layer;
  const int64_t rows = layer.steps * layer.batch, I = layer.input, G = layer.directions * 4 * layer.hidden;
  const Tensor gates = work.new_compute({layer.steps, layer.batch, G});
  const Tensor weight_ih = stack(layer.of_each_direction(&Layer::weight_ih));
  work.context.multiply({.m = rows,
                         .n = G,
                         .k = I,
                         .a = {.data = work.in.x.data_ptr(), .stride = I},
                         .b = {.data = weight_ih.data_ptr(), .stride = I, .transposed = true},
                         .c = gates.data_ptr(),
                         .c_stride = G,
                         .wide = true});
  return gates;
}

ForwardResult run_forward(const Work& work, bool keep_cells, bool keep_gates) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  ForwardResult out;
  out.y = work.new_io({T, N, D * P});
  out.cell = keep_cells ? work.new_compute({T, N, D * H}) : work.new_compute({0});
  if (work.empty()) {
    out.gates = keep_gates ? work.new_compute({T, N, D * 4 * H}) : work.new_compute({0});
    out.h_n = clone(work.in.h0);
    out.c_n = clone(work.in.c0);
    return out;
  }

  out.gates = input_gates(work);
  const Tensor weight_hh = stack(layer.of_each_direction(&Layer::weight_hh));
  run_recurrence(work, weight_hh, out, keep_gates);
  if (!keep_gates) out.gates = work.new_compute({0});
  return out;
}

std::tuple<Tensor, Tensor, Tensor> lstm_inference(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                                  const std::vector<Tensor>& weights,
                                                  const std::optional<Tensor>& lengths,
                                                  const std::optional<Tensor>& resets, bool tf32) {
  const ForwardResult out =
      run_forward(Work({x, h0, c0, weights, lengths, resets}, tf32, Pass::forward), false, false);
  return {out.y, out.h_n, out.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(const Tensor& x, const Tensor& h0,
                                                                const Tensor& c0,
                                                                const std::vector<Tensor>& weights,
                                                                const std::optional<Tensor>& lengths,
                                                                const std::optional<Tensor>& resets,
                                                                bool tf32, bool keep_cells, bool keep_gates) {
  const Work work({x, h0, c0, weights, lengths, resets}, tf32, Pass::forward);
  const ForwardResult out = run_forward(work, keep_cells, keep_gates);
  return {out.y, out.h_n, out.c_n, out.cell, out.gates};
}

// [D, T, N, P]: the state from which each step started.
Tensor states_before(const Work& work, const Tensor& y) {
  const Layer& layer = work.layer;
  const Tensor before = work.new_io({layer.directions, layer.steps, layer.batch, layer.outputs});
  states_before(work.size, work.in.h0.data_ptr(), y.data_ptr(), before.data_ptr(), work.type(),
                work.stream());
  return before;
}

std::tuple<Tensor, Tensor> lstm_recompute(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                          const std::vector<Tensor>& weights,
                                          const std::optional<Tensor>& lengths,
                                          const std::optional<Tensor>& resets, bool tf32, const Tensor& y) {
  const Work work({x, h0, c0, weights, lengths, resets}, tf32, Pass::backward);
  const Layer& layer = work.layer;
  check_outputs(layer, y);
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  const Tensor cell = work.new_compute({T, N, D * H});
  if (work.empty()) return {cell, work.new_compute({T, N, D * 4 * H})};

  const Tensor gates = input_gates(work), before = states_before(work, prepare(y, work.io));
  const Tensor weight_hh = stack(layer.of_each_direction(&Layer::weight_hh));
  work.context.multiply(
      {.m = T * N,
       .n = 4 * H,
       .k = P,
       .a = {.data = before.data_ptr(), .stride = P, .next = T * N * P},
       .b = {.data = weight_hh.data_ptr(), .stride = P, .transposed = true, .next = 4 * H * P},
       .c = gates.data_ptr(),
       .c_stride = D * 4 * H,
       .c_next = 4 * H,
       .wide = true,
       .accumulate = true,
       .batch = D});
  const std::optional<Tensor> bias = bias_sum(work);
  const Tensor c = converted(work.in.c0, work.compute, work);
  ForwardArgs args{};
  args.size = work.size;
  args.bias = pointer<void>(bias);
  args.gates = gates.data_ptr();
  args.cells = cell.data_ptr();
  args.c_t = c.data_ptr();
  recompute_cells(args, work.type(), work.plan.stepwise, work.stream());
  return {cell, gates};
}

struct BackwardResult {
  Tensor grad_x, grad_h0, grad_c0;
  std::vector<Tensor> grad_weights;
};

// [4H] io
Tensor bias_gradient(const Work& work, const Gradients& grads, int64_t d) {
  const Layer& layer = work.layer;
  const int64_t gates = 4 * layer.hidden;
  const std::vector<int64_t> rows{0};
  if (grads.bias) {
    const Tensor sum = torch::stable::sum(torch::stable::select(*grads.bias, 0, d), rows);
    return sum.scalar_type() == work.io ? sum : torch::stable::to(sum, work.io);
  }
  const Tensor all = torch::stable::view(grads.gates, {layer.steps * layer.batch, layer.directions * gates});
  return torch::stable::sum(slice(all, 1, d * gates, gates), rows);
}

BackwardResult run_backward(const Work& work, const Incoming& grad, const Saved& saved, bool need_x,
                            bool need_h0, const std::vector<int64_t>& need_weights) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, I = layer.input, H = layer.hidden, P = layer.outputs,
                D = layer.directions;
  // What is not needed is returned empty; each a tensor of its own, as outputs of an operator must be.
  BackwardResult out{work.new_io({0}), work.new_io({0}), {}, {}};
  for (size_t i = 0; i < layer.weights.size(); ++i) out.grad_weights.push_back(work.new_io({0}));
  if (work.empty()) {
    if (need_x) out.grad_x = work.new_io({T, N, I});
    if (need_h0) out.grad_h0 = grad.h_n ? clone(*grad.h_n) : new_zeros(work.in.x, {D, N, P});
    for (size_t i = 0; i < layer.weights.size(); ++i) {
      const Tensor& weight = layer.weights[i];
      if (!need_weights[i]) continue;
      out.grad_weights[i] = torch::stable::empty_like(weight);
      zero_(out.grad_weights[i]);
    }
    out.grad_c0 = grad.c_n ? clone(*grad.c_n) : new_zeros(work.in.x, {D, N, H});
    return out;
  }

  const Tensor weight_hh = stack(layer.of_each_direction(&Layer::weight_hh));
  Gradients grads{.gates = work.new_io({T, N, D * 4 * H}),
                  .first_gates = {},
                  .c0 = {},
                  .bias = {},
                  .projected = {},
                  .unprojected = {}};
  run_recurrence_backward(work, grad, saved, weight_hh, grads);
  out.grad_c0 = grads.c0;

  if (need_h0) {
    out.grad_h0 = work.new_io({D, N, P});
    const bool handed_through = work.in.lengths && grad.h_n;
    if (handed_through)
      seed_grad_h0(work.size, grad.h_n->data_ptr(), out.grad_h0.data_ptr(), work.type(), work.stream());
    work.context.multiply({.m = N,
                           .n = P,
                           .k = 4 * H,
                           .a = {.data = grads.first_gates.data_ptr(), .stride = 4 * H, .next = N * 4 * H},
                           .b = {.data = weight_hh.data_ptr(), .stride = P, .next = 4 * H * P},
                           .c = out.grad_h0.data_ptr(),
                           .c_stride = P,
                           .c_next = N * P,
                           .accumulate = handed_through,
                           .batch = D});
  }
  if (need_x) {
    const Tensor weight_ih = stack(layer.of_each_direction(&Layer::weight_ih));
    out.grad_x = work.new_io({T, N, I});
    work.context.multiply({.m = T * N,
                           .n = I,
                           .k = D * 4 * H,
                           .a = {.data = grads.gates.data_ptr(), .stride = D * 4 * H},
                           .b = {.data = weight_ih.data_ptr(), .stride = I},
                           .c = out.grad_x.data_ptr(),
                           .c_stride = I});
  }
  std::optional<Tensor> before;  // of all directions, made for the first that needs it
  for (int64_t d = 0; d < D; ++d) {
    const int64_t at = layer.first_weight(d);
    const Matrix of_direction{
        .data = work.at(grads.gates, d * 4 * H), .stride = D * 4 * H, .transposed = true};
    if (need_weights[at]) {
      out.grad_weights[at] = work.new_io({4 * H, I});
      work.context.multiply({.m = 4 * H,
                             .n = I,
                             .k = T * N,
                             .a = of_direction,
                             .b = {.data = work.in.x.data_ptr(), .stride = I},
                             .c = out.grad_weights[at].data_ptr(),
                             .c_stride = I});
    }
    if (need_weights[at + 1]) {
      if (!before) before = states_before(work, saved.y);
      out.grad_weights[at + 1] = work.new_io({4 * H, P});
      work.context.multiply({.m = 4 * H,
                             .n = P,
                             .k = T * N,
                             .a = of_direction,
                             .b = {.data = work.at(*before, d * T * N * P), .stride = P},
                             .c = out.grad_weights[at + 1].data_ptr(),
                             .c_stride = P});
    }
    if (layer.biased && (need_weights[at + 2] || need_weights[at + 3])) {
      const Tensor sum = bias_gradient(work, grads, d);
      if (need_weights[at + 2]) out.grad_weights[at + 2] = sum;
      if (need_weights[at + 3]) out.grad_weights[at + 3] = need_weights[at + 2] ? clone(sum) : sum;
    }
    const int64_t hr = at + layer.weights_per_direction() - 1;
    if (layer.projected && need_weights[hr]) {
      out.grad_weights[hr] = work.new_io({P, H});
      work.context.multiply(
          {.m = P,
           .n = H,
           .k = T * N,
           .a = {.data = work.at(*grads.projected, d * T * N * P), .stride = P, .transposed = true},
           .b = {.data = work.at(*grads.unprojected, d * T * N * H), .stride = H},
           .c = out.grad_weights[hr].data_ptr(),
           .c_stride = H});
    }
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell, const Tensor& x,
    const Tensor& h0, const Tensor& c0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets, bool tf32, const Tensor& y,
    const Tensor& cell, const Tensor& gates, bool need_x, bool need_h0,
    const std::vector<int64_t>& need_weights) {
  const Work work({x, h0, c0, weights, lengths, resets}, tf32, Pass::backward);
  check_backward(work.layer, {grad_y, grad_h_n, grad_c_n, grad_cell}, {y, cell, gates}, need_weights);
  const Incoming grad{prepare(grad_y, work.io), prepare(grad_h_n, work.io), prepare(grad_c_n, work.io),
                      prepare(grad_cell, work.compute)};
  const Saved saved{prepare(y, work.io), prepare(cell, work.compute), prepare(gates, work.compute)};
  const BackwardResult out = run_backward(work, grad, saved, need_x, need_h0, need_weights);
  return {out.grad_x, out.grad_h0, out.grad_c0, out.grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CUDA, m) {
  m.impl("lstm_inference", TORCH_BOX(&lstm_inference));
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_recompute", TORCH_BOX(&lstm_recompute));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
}

}  // namespace fusedlstm::cuda
