// One layer on a GPU: the matrix products over all steps, the tensors, and between them the recurrence: one
// persistent launch, or a loop over steps, each of which is one product and one kernel for all directions at
// once (and one more product with a projection).
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>
#include <tuple>

#include "../checks.h"
#include "context.h"
#include "persistent.h"
#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

using torch::stable::clone;
using torch::stable::copy_;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::zero_;

Type type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return Type::float64;
    case ScalarType::Half:
      return Type::float16;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    default:
      return Type::float32;
  }
}

// FUSEDLSTM_PRINT_PLAN=1 shows each plan when it is first used.
void announce(const Plan& plan) {
  static const char* const choice = std::getenv("FUSEDLSTM_PRINT_PLAN");
  if (!choice || std::string(choice) != "1") return;
  static std::mutex mutex;
  static std::set<std::string> shown;
  const std::lock_guard lock(mutex);
  if (const std::string text = to_string(plan); shown.insert(text).second)
    std::fprintf(stderr, "fusedlstm: %s\n", text.c_str());
}

// FUSEDLSTM_STRATEGY overrules the model of the plan.
Wanted wanted() {
  const char* const choice = std::getenv("FUSEDLSTM_STRATEGY");
  const std::optional<Wanted> named = wanted_named(choice ? choice : "fastest");
  STD_TORCH_CHECK(named, "FUSEDLSTM_STRATEGY must be ", kWantedNames, ", got ", choice);
  return *named;
}

// FUSEDLSTM_SM_MARGIN multiprocessors are left to other work, such as the kernels that DDP communicates with.
Limits limits_of(const Context& context) {
  Limits limits = context.limits();
  const char* const margin = std::getenv("FUSEDLSTM_SM_MARGIN");
  if (!margin) return limits;
  char* end = nullptr;
  const long count = std::strtol(margin, &end, 10);
  STD_TORCH_CHECK(end != margin && *end == '\0' && count >= 0 && count < limits.multiprocessors,
                  "FUSEDLSTM_SM_MARGIN must be a number from 0 to ", limits.multiprocessors - 1, ", got ",
                  margin);
  limits.multiprocessors -= static_cast<int>(count);
  return limits;
}

// The arguments of a layer made dense, and what every part of its work needs to know.
struct Work {
  Inputs in;
  Layer layer;
  ScalarType io, compute;
  Context context;
  Plan plan;
  Sizes size;

  Work(const Inputs& inputs, bool tf32, Pass pass)
      : in(checked(inputs)),
        layer(in),
        io(in.x.scalar_type()),
        compute(compute_type(in.x)),
        context(in.x.get_device_index(), type_of(io), tf32),
        plan(make_plan({.steps = layer.steps,
                        .batch = layer.batch,
                        .hidden = layer.hidden,
                        .outputs = layer.outputs,
                        .directions = layer.directions,
                        .type = type_of(io),
                        .tf32 = tf32,
                        .pass = pass},
                       limits_of(context), wanted())),
        size{layer.steps,
             layer.batch,
             layer.hidden,
             layer.outputs,
             layer.directions,
             pointer<const int64_t>(in.lengths),
             pointer<const bool>(in.resets)} {
    announce(plan);
  }

  Type type() const { return type_of(io); }
  Stream stream() const { return context.stream(); }
  bool persistent() const { return plan.strategy == Strategy::persistent; }
  bool empty() const { return layer.steps == 0 || layer.batch == 0; }

  // Place of an element of a tensor, counted in the layer's type.
  void* at(const Tensor& tensor, int64_t offset) const {
    return static_cast<char*>(tensor.data_ptr()) + offset * io_bytes(type());
  }
  Tensor new_io(std::initializer_list<int64_t> shape) const { return new_empty(in.x, shape); }
  Tensor new_compute(std::initializer_list<int64_t> shape) const { return new_empty(in.x, shape, compute); }

 private:
  static Inputs checked(const Inputs& inputs) {
    (void)Layer(inputs);  // the caller's own tensors, before any is copied
    return prepare(inputs, inputs.x.scalar_type());
  }
};

// What a persistent launch needs besides the layer's own tensors: the weights in its order, and memory
// through which its blocks talk. It lives as long as its owner.
struct PersistentMemory {
  Tensor weights, slots, flags;

  PersistentMemory(const Work& work, Pass pass, const Tensor& weight_hh)
      : weights(work.new_io({packed_bytes(work.size, *work.plan.persistent) / io_bytes(work.type())})),
        slots(new_empty(work.in.x, {slot_words(work.size, *work.plan.persistent)}, ScalarType::Int)),
        flags(new_zeros(work.in.x, {work.plan.persistent->blocks(work.layer.directions) * kFlagWords},
                        ScalarType::Int)) {
    clear_slots(work.size, *work.plan.persistent, pass, slots.data_ptr(), work.type(), work.stream());
    pack_weights(work.size, *work.plan.persistent, pass, weight_hh.data_ptr(), weights.data_ptr(),
                 work.type(), work.stream());
  }

  Exchange exchange() const { return {slots.data_ptr(), pointer<uint32_t>(flags)}; }
};

struct ForwardResult {
  Tensor y, h_n, c_n, cell, gates;
};

Tensor converted(const Tensor& tensor, ScalarType type, const Work& work) {
  const Layer& layer = work.layer;
  Tensor out = new_empty(work.in.x, {layer.directions, layer.batch, layer.hidden}, type);
  copy_(out, tensor);
  return out;
}

std::optional<Tensor> bias_sum(const Work& work) {
  const Layer& layer = work.layer;
  if (!layer.biased) return std::nullopt;
  const int64_t gates = 4 * layer.hidden;
  Tensor bias = work.new_compute({layer.directions, gates});
  for (int64_t d = 0; d < layer.directions; ++d) {
    const Tensor part = slice(bias, 0, d, 1);
    sum_biases(layer.bias_ih(d).data_ptr(), layer.bias_hh(d).data_ptr(), part.data_ptr(), gates, work.type(),
               work.stream());
  }
  return bias;
}

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

// Whether the device has taken the launch.
bool launch_forward(const Work& work, const Tensor& weight_hh, const std::optional<Tensor>& bias,
                    const Tensor& c, const ForwardResult& out, bool keep_gates) {
  const PersistentMemory memory(work, Pass::forward, weight_hh);
  return forward_persistent({.size = work.size,
                             .plan = *work.plan.persistent,
                             .exchange = memory.exchange(),
                             .weights = memory.weights.data_ptr(),
                             .bias = pointer<void>(bias),
                             .h0 = work.in.h0.data_ptr(),
                             .gates = out.gates.data_ptr(),
                             .keep_gates = keep_gates,
                             .cell = out.cell.numel() ? out.cell.data_ptr() : nullptr,
                             .c = c.data_ptr(),
                             .y = out.y.data_ptr(),
                             .h = out.h_n.data_ptr()},
                            work.type(), work.stream());
}

void forward_steps(const Work& work, const Tensor& weight_hh, const std::optional<Tensor>& bias,
                   const Tensor& c, const ForwardResult& out, bool keep_gates) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
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
                         .cell = out.cell.numel() ? out.cell.data_ptr() : nullptr,
                         .c = c.data_ptr(),
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
}

ForwardResult run_forward(const Work& work, bool keep_cells, bool keep_gates) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  ForwardResult out;
  out.y = work.new_io({T, N, D * P});
  out.h_n = clone(work.in.h0);
  out.cell = keep_cells ? work.new_compute({T, N, D * H}) : work.new_compute({0});
  if (work.empty()) {
    out.gates = keep_gates ? work.new_compute({T, N, D * 4 * H}) : work.new_compute({0});
    out.c_n = clone(work.in.c0);
    return out;
  }

  out.gates = input_gates(work);
  const Tensor weight_hh = stack(layer.of_each_direction(&Layer::weight_hh));
  const std::optional<Tensor> bias = bias_sum(work);
  const Tensor c = converted(work.in.c0, work.compute, work);
  if (!work.persistent() || !launch_forward(work, weight_hh, bias, c, out, keep_gates))
    forward_steps(work, weight_hh, bias, c, out, keep_gates);
  out.c_n = converted(c, work.io, work);
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

std::tuple<Tensor, Tensor> lstm_rebuild(const Tensor& x, const Tensor& h0, const Tensor& c0,
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
  args.cell = cell.data_ptr();
  args.c = c.data_ptr();
  rebuild_cells(args, work.type(), work.plan.stepwise, work.stream());
  return {cell, gates};
}

struct BackwardResult {
  Tensor grad_x, grad_h0, grad_c0;
  std::vector<Tensor> grad_weights;
};

// What the loop over steps leaves for the products over all of them.
struct Gradients {
  Tensor gates;                // [T, N, D*4H]
  Tensor first_gates;          // [D, N, 4H]    of each row's first step; zero where h0 does not reach it
  std::optional<Tensor> bias;  // [D, groups, 4H] compute, where the launch has summed them up
  std::optional<Tensor> projected,
      unprojected;  // [D, T, N, P] gradient and [D, T, N, H] value, in order of steps
};

// Whether the device has taken the launch.
bool launch_backward(const Work& work, const Incoming& grad, const Saved& saved, const Tensor& weight_hh,
                     const Tensor& grad_c, Gradients& out) {
  const PersistentMemory memory(work, Pass::backward, weight_hh);
  const Tensor bias =
      work.new_compute({work.layer.directions, work.plan.persistent->groups, 4 * work.layer.hidden});
  const bool launched = backward_persistent({.size = work.size,
                                             .plan = *work.plan.persistent,
                                             .exchange = memory.exchange(),
                                             .weights = memory.weights.data_ptr(),
                                             .gates = saved.gates.data_ptr(),
                                             .cell = saved.cell.data_ptr(),
                                             .c0 = work.in.c0.data_ptr(),
                                             .grad_cell = pointer<void>(grad.cell),
                                             .grad_y = pointer<void>(grad.y),
                                             .grad_h_n = pointer<void>(grad.h_n),
                                             .grad_c = grad_c.data_ptr(),
                                             .grad_gates = out.gates.data_ptr(),
                                             .grad_bias = pointer<float>(bias),
                                             .first_gates = out.first_gates.data_ptr()},
                                            work.type(), work.stream());
  if (launched) out.bias = bias;
  return launched;
}

void backward_steps(const Work& work, const Incoming& grad, const Saved& saved, const Tensor& weight_hh,
                    const Tensor& grad_c, Gradients& out) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
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
                    .cell = saved.cell.data_ptr(),
                    .c0 = work.in.c0.data_ptr(),
                    .grad_cell = pointer<void>(grad.cell),
                    .grad_y = layer.projected ? nullptr : pointer<void>(grad.y),
                    .grad_h_n = layer.projected ? nullptr : pointer<void>(grad.h_n),
                    .grad_h = nullptr,
                    .grad_c = grad_c.data_ptr(),
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
    args.grad_h = follows || layer.projected ? grad_h.data_ptr() : nullptr;
    backward_cells(args, step, work.type(), work.plan.stepwise, work.stream());
  }
}

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
  Tensor grad_c =
      grad.c_n ? converted(*grad.c_n, work.compute, work) : new_zeros(work.in.x, {D, N, H}, work.compute);
  if (work.empty()) {
    if (need_x) out.grad_x = work.new_io({T, N, I});
    if (need_h0) out.grad_h0 = grad.h_n ? clone(*grad.h_n) : new_zeros(work.in.x, {D, N, P});
    for (size_t i = 0; i < layer.weights.size(); ++i) {
      const Tensor& weight = layer.weights[i];
      if (!need_weights[i]) continue;
      out.grad_weights[i] = torch::stable::empty_like(weight);
      zero_(out.grad_weights[i]);
    }
    out.grad_c0 = converted(grad_c, work.io, work);
    return out;
  }

  const Tensor weight_hh = stack(layer.of_each_direction(&Layer::weight_hh));
  Gradients grads{.gates = work.new_io({T, N, D * 4 * H}),
                  .first_gates = new_zeros(work.in.x, {D, N, 4 * H}),
                  .bias = {},
                  .projected = {},
                  .unprojected = {}};
  if (!work.persistent() || !launch_backward(work, grad, saved, weight_hh, grad_c, grads))
    backward_steps(work, grad, saved, weight_hh, grad_c, grads);
  out.grad_c0 = converted(grad_c, work.io, work);

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
  m.impl("lstm_rebuild", TORCH_BOX(&lstm_rebuild));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
}

}  // namespace fusedlstm::cuda
