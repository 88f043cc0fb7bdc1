// The recurrence backward: one persistent launch, or a loop over steps.
#include "persistent.h"
#include "recurrence.h"
#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

// Whether the device has taken the launch.
bool try_persistent(const LayerCall& call, const OutputGradients& grads, const SavedForBackward& saved,
                    const Tensor& weight_hh, RecurrenceGradients& out) {
  const auto& [T, N, I, H, P, D, S] = call.layer.size;
  const PersistentMemory memory(call, weight_hh);
  const Tensor bias = call.new_compute({D, call.plan.persistent->groups, 4 * H});
  out.c0 = call.new_io({D, N, H});
  out.gates_first = call.new_io({D, N, 4 * H});
  const bool launched = backward_persistent({.size = call.kernel_sizes,
                                             .plan = *call.plan.persistent,
                                             .exchange = memory.exchange,
                                             .weights = memory.weights.data_ptr(),
                                             .gates = saved.gates.data_ptr(),
                                             .cells = saved.cells.data_ptr(),
                                             .c0 = call.layer.c0.data_ptr(),
                                             .grad_cells = pointer<void>(grads.cells),
                                             .grad_y = pointer<void>(grads.y),
                                             .grad_h_n = pointer<void>(grads.h_n),
                                             .grad_c_n = pointer<void>(grads.c_n),
                                             .grad_c0 = out.c0.data_ptr(),
                                             .grad_gates = out.gates.data_ptr(),
                                             .grad_bias = pointer<float>(bias),
                                             .grad_gates_first = out.gates_first.data_ptr()},
                                            call.type(), call.stream());
  if (launched) out.bias = bias;
  return launched;
}

// grad_h [D, N, H] compute of a step, from the gradient of its projected states. That holds the part from the
// outputs, and the product passed back by the following step is added to it. In a packed batch the directions
// differ in rows, and each has products of its own.
void multiply_projected(const LayerCall& call, int64_t step, bool follows, const Tensor& grad_gates_step,
                        const Tensor& weight_hh, const Tensor& weight_hr, const Tensor& grad_projected,
                        const Tensor& grad_h) {
  const auto& [T, N, I, H, P, D, S] = call.layer.size;
  const auto entry = [&](int64_t d) { return d * S + call.first_entry(d, step); };
  const int64_t batch = call.packed ? 1 : D;
  for (int64_t d = 0; d < D; d += batch) {
    const int64_t rows = call.rows(d, step), next = batch > 1 ? (entry(1) - entry(0)) * P : 0;
    void* const projected = call.at(grad_projected, entry(d) * P);
    if (follows)
      call.context.multiply(
          {.m = rows,
           .n = P,
           .k = 4 * H,
           .a = {.data = call.at(grad_gates_step, d * N * 4 * H), .stride = 4 * H, .next = N * 4 * H},
           .b = {.data = call.at(weight_hh, d * 4 * H * P), .stride = P, .next = 4 * H * P},
           .c = projected,
           .c_stride = P,
           .c_next = next,
           .accumulate = true,
           .batch = batch});
    call.context.multiply(
        {.m = rows,
         .n = H,
         .k = P,
         .a = {.data = projected, .stride = P, .next = next},
         .b = {.data = call.at(weight_hr, d * P * H), .stride = H, .next = P * H},
         .c = static_cast<char*>(grad_h.data_ptr()) + d * N * H * compute_bytes(call.type()),
         .c_stride = H,
         .c_next = N * H,
         .wide = true,
         .batch = batch});
  }
}

void run_stepwise(const LayerCall& call, const OutputGradients& grads, const SavedForBackward& saved,
                  const Tensor& weight_hh, RecurrenceGradients& out) {
  const Layer& layer = call.layer;
  const auto& [T, N, I, H, P, D, S] = layer.size;
  const Tensor grad_c =
      grads.c_n ? call.converted(*grads.c_n, call.compute) : allocate_zeros(layer.x, {D, N, H}, call.compute);
  out.gates_first = allocate_zeros(layer.x, {D, N, 4 * H});
  const Tensor grad_h = call.new_compute({D, N, H});
  std::optional<Tensor> weight_hr;
  if (layer.projected) {
    weight_hr = call.stacked(&Layer::weight_hr);
    out.projected = call.new_io({D, S, P});
    out.unprojected = call.new_io({D, S, H});
    seed_projected(call.kernel_sizes, pointer<void>(grads.y), pointer<void>(grads.h_n),
                   out.projected->data_ptr(), call.type(), call.stream());
  }
  BackwardArgs args{.size = call.kernel_sizes,
                    .gates = saved.gates.data_ptr(),
                    .cells = saved.cells.data_ptr(),
                    .c0 = call.layer.c0.data_ptr(),
                    .grad_cells = pointer<void>(grads.cells),
                    .grad_y = layer.projected ? nullptr : pointer<void>(grads.y),
                    .grad_h_n = layer.projected ? nullptr : pointer<void>(grads.h_n),
                    .grad_h_t = nullptr,
                    .grad_c_t = grad_c.data_ptr(),
                    .grad_gates = out.gates.data_ptr(),
                    .grad_gates_step = out.gates_first.data_ptr(),
                    .unprojected = pointer<void>(out.unprojected)};
  for (int64_t step = T - 1; step >= 0; --step) {
    const bool follows = step < T - 1;  // no step follows the last one
    if (layer.projected) {
      multiply_projected(call, step, follows, out.gates_first, weight_hh, *weight_hr, *out.projected, grad_h);
    } else if (follows) {
      call.context.multiply({.m = call.rows(step),
                             .n = P,
                             .k = 4 * H,
                             .a = {.data = args.grad_gates_step, .stride = 4 * H, .next = N * 4 * H},
                             .b = {.data = weight_hh.data_ptr(), .stride = P, .next = 4 * H * P},
                             .c = grad_h.data_ptr(),
                             .c_stride = P,
                             .c_next = N * P,
                             .wide = true,
                             .batch = D});
    }
    args.grad_h_t = follows || layer.projected ? grad_h.data_ptr() : nullptr;
    backward_cells(args, step, call.type(), call.plan.stepwise, call.stream());
  }
  out.c0 = call.converted(grad_c, call.io);
}

}  // namespace

RecurrenceGradients run_backward_steps(const LayerCall& call, const OutputGradients& grads,
                                       const SavedForBackward& saved, const Tensor& weight_hh) {
  const auto& [T, N, I, H, P, D, S] = call.layer.size;
  RecurrenceGradients out;
  out.gates = call.new_io(call.layer.sequence(D * 4 * H));
  if (!call.persistent() || !try_persistent(call, grads, saved, weight_hh, out))
    run_stepwise(call, grads, saved, weight_hh, out);
  return out;
}

}  // namespace fusedlstm::cuda
