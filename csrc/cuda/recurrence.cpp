#include "recurrence.h"

#include "persistent.h"
#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

// What a persistent launch needs besides the layer's own tensors: the weights in its order, and the memory
// of the exchange.
struct PersistentMemory {
  Tensor weights, words;
  Exchange exchange;

  PersistentMemory(const Work& work, const Tensor& weight_hh)
      : weights(work.new_io({packed_bytes(work.size, *work.plan.persistent) / io_bytes(work.type())})),
        words(new_empty(
            work.in.x,
            {slot_words(work.size, *work.plan.persistent) + flag_words(work.size, *work.plan.persistent)},
            ScalarType::Int)),
        exchange(clear_exchange(work.size, *work.plan.persistent, pointer<uint32_t>(words), work.type(),
                                work.stream())) {
    pack_weights(work.size, *work.plan.persistent, weight_hh.data_ptr(), weights.data_ptr(), work.type(),
                 work.stream());
  }
};

// Whether the device has taken the launch.
bool launch_forward(const Work& work, const Tensor& weight_hh, ForwardResult& out, bool keep_gates) {
  const Layer& layer = work.layer;
  const PersistentMemory memory(work, weight_hh);
  const Tensor h_n = work.new_io({layer.directions, layer.batch, layer.hidden});
  const Tensor c_n = work.new_io({layer.directions, layer.batch, layer.hidden});
  PersistentForwardArgs args{.size = work.size,
                             .plan = *work.plan.persistent,
                             .exchange = memory.exchange,
                             .weights = memory.weights.data_ptr(),
                             .bias_ih = {},
                             .bias_hh = {},
                             .h0 = work.in.h0.data_ptr(),
                             .c0 = work.in.c0.data_ptr(),
                             .gates = out.gates.data_ptr(),
                             .keep_gates = keep_gates,
                             .cells = out.cell.numel() ? out.cell.data_ptr() : nullptr,
                             .y = out.y.data_ptr(),
                             .h_n = h_n.data_ptr(),
                             .c_n = c_n.data_ptr()};
  for (int64_t d = 0; layer.biased && d < layer.directions; ++d) {
    args.bias_ih[d] = layer.bias_ih(d).data_ptr();
    args.bias_hh[d] = layer.bias_hh(d).data_ptr();
  }
  if (!forward_persistent(args, work.type(), work.stream())) return false;
  out.h_n = h_n, out.c_n = c_n;
  return true;
}

void forward_steps(const Work& work, const Tensor& weight_hh, ForwardResult& out, bool keep_gates) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  const std::optional<Tensor> bias = bias_sum(work);
  const Tensor c = converted(work.in.c0, work.compute, work);
  out.h_n = torch::stable::clone(work.in.h0);
  const Tensor recurrent = work.new_compute({D, N, 4 * H});
  std::optional<Tensor> weight_hr, unprojected;
  if (layer.projected) {
    weight_hr = stack(layer.of_each_direction(&Layer::weight_hr));
    unprojected = work.new_io({D, N, H});
  }
  const ForwardArgs args{.size = work.size,
                         .bias = pointer<void>(bias),
                         .recurrent = recurrent.data_ptr(),
                         .gates = out.gates.data_ptr(),
                         .keep_gates = keep_gates,
                         .cells = out.cell.numel() ? out.cell.data_ptr() : nullptr,
                         .c_t = c.data_ptr(),
                         .y = out.y.data_ptr(),
                         .h = out.h_n.data_ptr(),
                         .unprojected = pointer<void>(unprojected)};
  const Product hidden_to_gates{
      .m = N,
      .n = 4 * H,
      .k = P,
      .a = {.data = args.h, .stride = P, .next = N * P},
      .b = {.data = weight_hh.data_ptr(), .stride = P, .transposed = true, .next = 4 * H * P},
      .c = recurrent.data_ptr(),
      .c_stride = 4 * H,
      .c_next = N * 4 * H,
      .wide = true,
      .batch = D};

  for (int64_t step = 0; step < T; ++step) {
    work.context.multiply(hidden_to_gates);
    forward_cells(args, step, work.type(), work.plan.stepwise, work.stream());
    if (layer.projected)
      work.context.multiply(
          {.m = N,
           .n = P,
           .k = H,
           .a = {.data = args.unprojected, .stride = H, .next = N * H},
           .b = {.data = weight_hr->data_ptr(), .stride = H, .transposed = true, .next = P * H},
           .c = args.h,
           .c_stride = P,
           .c_next = N * P,
           .accumulate = true,
           .batch = D});
  }
  if (layer.projected) forward_cells(args, T, work.type(), work.plan.stepwise, work.stream());
  out.c_n = converted(c, work.io, work);
}

// Whether the device has taken the launch.
bool launch_backward(const Work& work, const Incoming& grad, const Saved& saved, const Tensor& weight_hh,
                     Gradients& out) {
  const int64_t N = work.layer.batch, H = work.layer.hidden, D = work.layer.directions;
  const PersistentMemory memory(work, weight_hh);
  const Tensor bias = work.new_compute({D, work.plan.persistent->groups, 4 * H});
  out.c0 = work.new_io({D, N, H});
  out.first_gates = work.new_io({D, N, 4 * H});
  const bool launched = backward_persistent({.size = work.size,
                                             .plan = *work.plan.persistent,
                                             .exchange = memory.exchange,
                                             .weights = memory.weights.data_ptr(),
                                             .gates = saved.gates.data_ptr(),
                                             .cells = saved.cell.data_ptr(),
                                             .c0 = work.in.c0.data_ptr(),
                                             .grad_cells = pointer<void>(grad.cell),
                                             .grad_y = pointer<void>(grad.y),
                                             .grad_h_n = pointer<void>(grad.h_n),
                                             .grad_c_n = pointer<void>(grad.c_n),
                                             .grad_c0 = out.c0.data_ptr(),
                                             .grad_gates = out.gates.data_ptr(),
                                             .grad_bias = pointer<float>(bias),
                                             .first_gates = out.first_gates.data_ptr()},
                                            work.type(), work.stream());
  if (launched) out.bias = bias;
  return launched;
}

void backward_steps(const Work& work, const Incoming& grad, const Saved& saved, const Tensor& weight_hh,
                    Gradients& out) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  const Tensor grad_c =
      grad.c_n ? converted(*grad.c_n, work.compute, work) : new_zeros(work.in.x, {D, N, H}, work.compute);
  out.first_gates = new_zeros(work.in.x, {D, N, 4 * H});
  const Tensor grad_h = work.new_compute({D, N, H});
  std::optional<Tensor> weight_hr;
  if (layer.projected) {
    weight_hr = stack(layer.of_each_direction(&Layer::weight_hr));
    out.projected = work.new_io({D, T, N, P});
    out.unprojected = work.new_io({D, T, N, H});
    seed_projected(work.size, pointer<void>(grad.y), pointer<void>(grad.h_n), out.projected->data_ptr(),
                   work.type(), work.stream());
  }
  BackwardArgs args{.size = work.size,
                    .gates = saved.gates.data_ptr(),
                    .cells = saved.cell.data_ptr(),
                    .c0 = work.in.c0.data_ptr(),
                    .grad_cells = pointer<void>(grad.cell),
                    .grad_y = layer.projected ? nullptr : pointer<void>(grad.y),
                    .grad_h_n = layer.projected ? nullptr : pointer<void>(grad.h_n),
                    .grad_h_t = nullptr,
                    .grad_c_t = grad_c.data_ptr(),
                    .grad_gates = out.gates.data_ptr(),
                    .grad_gates_step = out.first_gates.data_ptr(),
                    .unprojected = pointer<void>(out.unprojected)};
  // Adds to what the outputs alone give with a projection.
  Product gates_to_hidden{.m = N,
                          .n = P,
                          .k = 4 * H,
                          .a = {.data = args.grad_gates_step, .stride = 4 * H, .next = N * 4 * H},
                          .b = {.data = weight_hh.data_ptr(), .stride = P, .next = 4 * H * P},
                          .c = grad_h.data_ptr(),
                          .c_stride = P,
                          .c_next = layer.projected ? T * N * P : N * P,
                          .wide = !layer.projected,
                          .accumulate = layer.projected,
                          .batch = D};
  for (int64_t step = T - 1; step >= 0; --step) {
    void* const projected = layer.projected ? work.at(*out.projected, step * N * P) : nullptr;
    if (layer.projected) gates_to_hidden.c = projected;
    const bool follows = step < T - 1;  // nothing comes from behind the last step
    if (follows) work.context.multiply(gates_to_hidden);
    if (layer.projected)
      work.context.multiply({.m = N,
                             .n = H,
                             .k = P,
                             .a = {.data = projected, .stride = P, .next = T * N * P},
                             .b = {.data = weight_hr->data_ptr(), .stride = H, .next = P * H},
                             .c = grad_h.data_ptr(),
                             .c_stride = H,
                             .c_next = N * H,
                             .wide = true,
                             .batch = D});
    args.grad_h_t = follows || layer.projected ? grad_h.data_ptr() : nullptr;
    backward_cells(args, step, work.type(), work.plan.stepwise, work.stream());
  }
  out.c0 = converted(grad_c, work.io, work);
}

}  // namespace

void run_recurrence(const Work& work, const Tensor& weight_hh, ForwardResult& out, bool keep_gates) {
  if (!work.persistent() || !launch_forward(work, weight_hh, out, keep_gates))
    forward_steps(work, weight_hh, out, keep_gates);
}

void run_recurrence_backward(const Work& work, const Incoming& grad, const Saved& saved,
                             const Tensor& weight_hh, Gradients& out) {
  if (!work.persistent() || !launch_backward(work, grad, saved, weight_hh, out))
    backward_steps(work, grad, saved, weight_hh, out);
}

}  // namespace fusedlstm::cuda
