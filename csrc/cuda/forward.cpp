// The recurrence forward: one persistent launch, or a loop over steps.
#include "persistent.h"
#include "recurrence.h"
#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

// Whether the device has taken the launch.
bool try_persistent(const LayerCall& call, const Tensor& weight_hh, const Tensor& gates,
                    ForwardResults& out) {
  const Layer& layer = call.layer;
  const PersistentMemory memory(call, weight_hh);
  const Tensor h_n = call.new_io({layer.size.directions, layer.size.batch, layer.size.hidden});
  const Tensor c_n = call.new_io({layer.size.directions, layer.size.batch, layer.size.hidden});
  PersistentForwardArgs args{.size = call.kernel_sizes,
                             .plan = *call.plan.persistent,
                             .exchange = memory.exchange,
                             .weights = memory.weights.data_ptr(),
                             .bias_ih = {},
                             .bias_hh = {},
                             .h0 = call.layer.h0.data_ptr(),
                             .c0 = call.layer.c0.data_ptr(),
                             .gates = gates.data_ptr(),
                             .kept = pointer<void>(out.gates),
                             .cells = pointer<void>(out.cells),
                             .y = out.y.data_ptr(),
                             .h_n = h_n.data_ptr(),
                             .c_n = c_n.data_ptr()};
  for (int64_t d = 0; layer.biased && d < layer.size.directions; ++d) {
    args.bias_ih[d] = layer.bias_ih(d).data_ptr();
    args.bias_hh[d] = layer.bias_hh(d).data_ptr();
  }
  if (!forward_persistent(args, call.type(), call.stream())) return false;
  out.h_n = h_n, out.c_n = c_n;
  return true;
}

void run_stepwise(const LayerCall& call, const Tensor& weight_hh, const Tensor& gates, ForwardResults& out) {
  const Layer& layer = call.layer;
  const auto& [T, N, I, H, P, D, S] = layer.size;
  const std::optional<Tensor> bias = call.bias_sum();
  const Tensor c_t = call.converted(call.layer.c0, call.compute);
  out.h_n = copied(call.layer.h0);
  const Tensor recurrent = call.new_compute({D, N, 4 * H});
  std::optional<Tensor> weight_hr, unprojected;
  if (layer.projected) {
    weight_hr = call.stacked(&Layer::weight_hr);
    unprojected = call.new_io({D, N, H});
  }
  const ForwardArgs args{.size = call.kernel_sizes,
                         .bias = pointer<void>(bias),
                         .recurrent = recurrent.data_ptr(),
                         .gates = gates.data_ptr(),
                         .kept = pointer<void>(out.gates),
                         .cells = pointer<void>(out.cells),
                         .c_t = c_t.data_ptr(),
                         .y = out.y.data_ptr(),
                         .h = out.h_n.data_ptr(),
                         .unprojected = pointer<void>(unprojected)};
  Product hidden_to_gates{
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
    hidden_to_gates.m = call.rows(step);
    call.context.multiply(hidden_to_gates);
    forward_cells(args, step, call.type(), call.plan.stepwise, call.stream());
    if (layer.projected)
      call.context.multiply(
          {.m = call.rows(step),
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
  if (layer.projected) forward_cells(args, T, call.type(), call.plan.stepwise, call.stream());
  out.c_n = call.converted(c_t, call.io);
}

}  // namespace

void run_forward_steps(const LayerCall& call, const Tensor& weight_hh, const Tensor& gates,
                       ForwardResults& out) {
  if (!call.persistent() || !try_persistent(call, weight_hh, gates, out))
    run_stepwise(call, weight_hh, gates, out);
}

}  // namespace fusedlstm::cuda
