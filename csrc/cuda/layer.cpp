// One layer on a GPU: tensors in, tensors out, and the matrix products over all steps before and after the
// recurrence.
#include "../operators.h"
#include "recurrence.h"
#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

// [S, D*4H] compute: the input's share of the gates, without biases.
Tensor input_gates(const LayerCall& call) {
  const auto& [T, N, I, H, P, D, S] = call.layer.size;
  const Tensor gates = call.new_compute(call.layer.sequence(D * 4 * H));
  const Tensor weight_ih = call.stacked(&Layer::weight_ih);
  call.context.multiply({.m = S,
                         .n = D * 4 * H,
                         .k = I,
                         .a = {.data = call.layer.x.data_ptr(), .stride = I},
                         .b = {.data = weight_ih.data_ptr(), .stride = I, .transposed = true},
                         .c = gates.data_ptr(),
                         .c_stride = D * 4 * H,
                         .wide = true});
  return gates;
}

// [D, S, P]: the state from which each step started.
Tensor states_before(const LayerCall& call, const Tensor& y) {
  const auto& [T, N, I, H, P, D, S] = call.layer.size;
  const Tensor before = call.new_io({D, S, P});
  states_before(call.kernel_sizes, call.layer.h0.data_ptr(), y.data_ptr(), before.data_ptr(), call.type(),
                call.stream());
  return before;
}

// [D, N, P]: the product of the first steps' gates and W_hh.
Tensor gradient_of_h0(const LayerCall& call, const RecurrenceGradients& recurrence, const Tensor& weight_hh,
                      const std::optional<Tensor>& grad_h_n) {
  const auto& [T, N, I, H, P, D, S] = call.layer.size;
  const Tensor grad_h0 = call.new_io({D, N, P});
  call.context.multiply({.m = N,
                         .n = P,
                         .k = 4 * H,
                         .a = {.data = recurrence.gates_first.data_ptr(), .stride = 4 * H, .next = N * 4 * H},
                         .b = {.data = weight_hh.data_ptr(), .stride = P, .next = 4 * H * P},
                         .c = grad_h0.data_ptr(),
                         .c_stride = P,
                         .c_next = N * P,
                         .batch = D});
  if (call.kernel_sizes.lengths || call.layer.resets)
    finish_grad_h0(call.kernel_sizes, pointer<void>(grad_h_n), grad_h0.data_ptr(), call.type(),
                   call.stream());
  return grad_h0;
}

// A sequence of I columns.
Tensor gradient_of_x(const LayerCall& call, const Tensor& grad_gates) {
  const auto& [T, N, I, H, P, D, S] = call.layer.size;
  const Tensor weight_ih = call.stacked(&Layer::weight_ih), grad_x = call.new_io(call.layer.sequence(I));
  call.context.multiply({.m = S,
                         .n = I,
                         .k = D * 4 * H,
                         .a = {.data = grad_gates.data_ptr(), .stride = D * 4 * H},
                         .b = {.data = weight_ih.data_ptr(), .stride = I},
                         .c = grad_x.data_ptr(),
                         .c_stride = I});
  return grad_x;
}

// [m, n]: transpose of `a`, [S, m], times b, [S, n].
Tensor sum_over_steps(const LayerCall& call, int64_t m, int64_t n, const Matrix& a, const void* b) {
  const Tensor gradient = call.new_io({m, n});
  call.context.multiply({.m = m,
                         .n = n,
                         .k = call.layer.size.entries,
                         .a = a,
                         .b = {.data = b, .stride = n},
                         .c = gradient.data_ptr(),
                         .c_stride = n});
  return gradient;
}

// [4H] io
Tensor gradient_of_bias(const LayerCall& call, const RecurrenceGradients& recurrence, int64_t d) {
  const auto& [T, N, I, H, P, D, S] = call.layer.size;
  const std::vector<int64_t> rows{0};
  if (recurrence.bias) {
    const Tensor parts = torch::stable::select(*recurrence.bias, 0, d);
    return cast(allocated(parts, {4 * H}, {}, [&] { return torch::stable::sum(parts, rows); }), call.io);
  }
  Tensor all = torch::stable::view(recurrence.gates, {S, D * 4 * H});
  const Tensor own = torch::stable::narrow(all, 1, d * 4 * H, 4 * H);
  return allocated(own, {4 * H}, {}, [&] { return torch::stable::sum(own, rows); });
}

// Replaces what is needed of out.weights.
void gradients_of_weights(const LayerCall& call, const RecurrenceGradients& recurrence, const Tensor& y,
                          const std::vector<int64_t>& needed, InputGradients& out) {
  const auto& [T, N, I, H, P, D, S] = call.layer.size;
  const auto need = [&](int64_t i) { return i >= 0 && needed[i]; };
  std::optional<Tensor> before;  // of all directions, made for the first that needs it
  for (int64_t d = 0; d < D; ++d) {
    const Layer::Positions at = call.layer.positions(d);
    const Matrix gates{.data = call.at(recurrence.gates, d * 4 * H), .stride = D * 4 * H, .transposed = true};
    if (need(at.ih)) out.weights[at.ih] = sum_over_steps(call, 4 * H, I, gates, call.layer.x.data_ptr());
    if (need(at.hh)) {
      if (!before) before = states_before(call, y);
      out.weights[at.hh] = sum_over_steps(call, 4 * H, P, gates, call.at(*before, d * S * P));
    }
    if (need(at.bias_ih) || need(at.bias_hh)) {
      const Tensor sum = gradient_of_bias(call, recurrence, d);
      if (need(at.bias_ih)) out.weights[at.bias_ih] = sum;
      if (need(at.bias_hh)) out.weights[at.bias_hh] = need(at.bias_ih) ? copied(sum) : sum;
    }
    if (need(at.hr))
      out.weights[at.hr] = sum_over_steps(
          call, P, H, {.data = call.at(*recurrence.projected, d * S * P), .stride = P, .transposed = true},
          call.at(*recurrence.unprojected, d * S * H));
  }
}

// Gradients of a call without steps or without rows.
void backward_of_nothing(const LayerCall& call, const OutputGradients& grads, const NeededGradients& needed,
                         InputGradients& out) {
  const auto zeros_like = [](const Tensor& tensor) { return allocate_zeros(tensor, tensor.sizes()); };
  if (needed.x) out.x = zeros_like(call.layer.x);
  if (needed.h0) out.h0 = grads.h_n ? copied(*grads.h_n) : zeros_like(call.layer.h0);
  out.c0 = grads.c_n ? copied(*grads.c_n) : zeros_like(call.layer.c0);
  for (size_t i = 0; i < out.weights.size(); ++i)
    if (needed.weights[i]) out.weights[i] = zeros_like(call.layer.weights[i]);
}

struct Backend {
  static ScalarType kept_type(const Tensor& x) { return x.scalar_type(); }

  static ForwardResults forward(const LayerInputs& in, const Keep& keep) {
    const LayerCall call(in, Pass::forward);
    const auto& [T, N, I, H, P, D, S] = call.layer.size;
    ForwardResults out;
    out.y = call.new_io(call.layer.sequence(D * P));
    if (keep.cells) out.cells = call.new_io(call.layer.sequence(D * H));
    if (call.empty()) {
      if (keep.gates) out.gates = call.new_io(call.layer.sequence(D * 4 * H));
      out.h_n = copied(call.layer.h0);
      out.c_n = copied(call.layer.c0);
      return out;
    }
    const Tensor gates = input_gates(call);
    if (keep.gates) out.gates = call.kept_gates(gates);
    run_forward_steps(call, call.stacked(&Layer::weight_hh), gates, out);
    return out;
  }

  static RecomputedTensors recompute(const LayerInputs& in, const Tensor& y) {
    const LayerCall call(in, Pass::backward);
    const auto& [T, N, I, H, P, D, S] = call.layer.size;
    const Tensor cells = call.new_io(call.layer.sequence(D * H));
    if (call.empty()) return {cells, call.new_io(call.layer.sequence(D * 4 * H))};

    const Tensor gates = input_gates(call), before = states_before(call, prepare(y, call.io));
    const Tensor weight_hh = call.stacked(&Layer::weight_hh);
    call.context.multiply(
        {.m = S,
         .n = 4 * H,
         .k = P,
         .a = {.data = before.data_ptr(), .stride = P, .next = S * P},
         .b = {.data = weight_hh.data_ptr(), .stride = P, .transposed = true, .next = 4 * H * P},
         .c = gates.data_ptr(),
         .c_stride = D * 4 * H,
         .c_next = 4 * H,
         .wide = true,
         .accumulate = true,
         .batch = D});
    const std::optional<Tensor> bias = call.bias_sum();
    const Tensor c_t = call.converted(call.layer.c0, call.compute);
    ForwardArgs args{};
    args.size = call.kernel_sizes;
    args.bias = pointer<void>(bias);
    const Tensor kept = call.kept_gates(gates);
    args.gates = gates.data_ptr();
    args.kept = kept.data_ptr();
    args.cells = cells.data_ptr();
    args.c_t = c_t.data_ptr();
    recompute_cells(args, call.type(), call.plan.stepwise, call.stream());
    return {cells, kept};
  }

  static InputGradients backward(const LayerInputs& in, const OutputGradients& given_grads,
                                 const SavedForBackward& given_saved, const NeededGradients& needed) {
    const LayerCall call(in, Pass::backward);
    const OutputGradients grads = prepare(given_grads, call.io);
    const SavedForBackward saved = prepare(given_saved, call.io);
    // What is not needed is returned empty; each a tensor of its own, as outputs of an operator must be.
    InputGradients out{call.new_io({0}), call.new_io({0}), {}, {}};
    for (size_t i = 0; i < call.layer.weights.size(); ++i) out.weights.push_back(call.new_io({0}));
    if (call.empty()) {
      backward_of_nothing(call, grads, needed, out);
      return out;
    }
    const Tensor weight_hh = call.stacked(&Layer::weight_hh);
    const RecurrenceGradients recurrence = run_backward_steps(call, grads, saved, weight_hh);
    out.c0 = recurrence.c0;
    if (needed.h0) out.h0 = gradient_of_h0(call, recurrence, weight_hh, grads.h_n);
    if (needed.x) out.x = gradient_of_x(call, recurrence.gates);
    gradients_of_weights(call, recurrence, saved.y, needed.weights, out);
    return out;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CUDA, m) {
  register_operators<Backend>(m);
}

}  // namespace fusedlstm::cuda
