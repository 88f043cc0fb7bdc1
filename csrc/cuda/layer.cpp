// One layer on a GPU: the matrix products over all steps, the tensors, and the loop over steps, each of which
// is one product and one kernel for all directions at once (and one more product with a projection).
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>
#include <tuple>

#include "../checks.h"
#include "context.h"
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

// The arguments of a layer made dense, and what every part of its work needs to know.
struct Work {
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
  std::optional<Tensor> lengths;
  Layer layer;
  ScalarType io, compute;
  Context context;
  Plan plan;
  Sizes size;

  Work(const Tensor& x_, const Tensor& h0_, const Tensor& c0_, const std::vector<Tensor>& weights_,
       const std::optional<Tensor>& lengths_, bool tf32)
      : x(prepare(x_, x_.scalar_type())),
        h0(prepare(h0_, x_.scalar_type())),
        c0(prepare(c0_, x_.scalar_type())),
        weights(prepare(weights_, x_.scalar_type())),
        lengths(prepare(lengths_, ScalarType::Long)),
        layer(x, h0, c0, weights, lengths),
        io(x.scalar_type()),
        compute(compute_type(x)),
        context(x.get_device_index(), type_of(io), tf32),
        plan(make_plan({.steps = layer.steps,
                        .batch = layer.batch,
                        .hidden = layer.hidden,
                        .outputs = layer.outputs,
                        .directions = layer.directions,
                        .type = type_of(io)},
                       context.limits())),
        size{layer.steps,   layer.batch,      layer.hidden,
             layer.outputs, layer.directions, lengths ? pointer<const int64_t>(*lengths) : nullptr} {
    announce(plan);
  }

  Type type() const { return type_of(io); }
  Stream stream() const { return context.stream(); }
  bool empty() const { return layer.steps == 0 || layer.batch == 0; }

  // Place of an element of a tensor, counted in the layer's type.
  void* at(const Tensor& tensor, int64_t offset) const {
    const int64_t bytes = io == ScalarType::Double ? 8 : io == ScalarType::Float ? 4 : 2;
    return static_cast<char*>(tensor.data_ptr()) + offset * bytes;
  }
  Tensor new_io(std::initializer_list<int64_t> shape) const { return new_empty(x, shape); }
  Tensor new_compute(std::initializer_list<int64_t> shape) const { return new_empty(x, shape, compute); }
};

struct ForwardResult {
  Tensor y, h_n, c_n, cell, gates;
};

Tensor converted(const Tensor& tensor, ScalarType type, const Work& work) {
  const Layer& layer = work.layer;
  Tensor out = new_empty(work.x, {layer.directions, layer.batch, layer.hidden}, type);
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

ForwardResult run_forward(const Work& work, bool keep) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, I = layer.input, H = layer.hidden, P = layer.outputs,
                D = layer.directions;
  ForwardResult out;
  out.y = work.new_io({T, N, D * P});
  out.h_n = clone(work.h0);
  out.gates = work.new_compute({T, N, D * 4 * H});
  if (keep) out.cell = work.new_compute({T, N, D * H});
  if (work.empty()) {
    out.c_n = clone(work.c0);
    return out;
  }

  const Tensor weight_ih = stack(layer.of_each_direction(&Layer::weight_ih));
  const Tensor weight_hh = stack(layer.of_each_direction(&Layer::weight_hh));
  const std::optional<Tensor> bias = bias_sum(work);
  const Tensor c = converted(work.c0, work.compute, work);
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
                         .cell = keep ? out.cell.data_ptr() : nullptr,
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

  work.context.multiply({.m = T * N,
                         .n = D * 4 * H,
                         .k = I,
                         .a = {.data = work.x.data_ptr(), .stride = I},
                         .b = {.data = weight_ih.data_ptr(), .stride = I, .transposed = true},
                         .c = args.gates,
                         .c_stride = D * 4 * H,
                         .wide = true});
  for (int64_t step = 0; step < T; ++step) {
    work.context.multiply(hidden_to_gates);
    forward_cells(args, step, work.type(), work.plan, work.stream());
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
  if (layer.projected) forward_cells(args, T, work.type(), work.plan, work.stream());
  out.c_n = converted(c, work.io, work);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> lstm_inference(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                                  const std::vector<Tensor>& weights,
                                                  const std::optional<Tensor>& lengths, bool tf32) {
  const ForwardResult out = run_forward(Work(x, h0, c0, weights, lengths, tf32), false);
  return {out.y, out.h_n, out.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(const Tensor& x, const Tensor& h0,
                                                                const Tensor& c0,
                                                                const std::vector<Tensor>& weights,
                                                                const std::optional<Tensor>& lengths,
                                                                bool tf32) {
  const ForwardResult out = run_forward(Work(x, h0, c0, weights, lengths, tf32), true);
  return {out.y, out.h_n, out.c_n, out.cell, out.gates};
}

struct BackwardResult {
  Tensor grad_x, grad_h0, grad_c0;
  std::vector<Tensor> grad_weights;
};

// What the loop over steps leaves for the products over all of them.
struct Gradients {
  Tensor gates;        // [T, N, D*4H]
  Tensor first_gates;  // [D, N, 4H]    of each row's first step; zero in rows of no steps
  std::optional<Tensor> projected,
      unprojected;  // [D, T, N, P] gradient and [D, T, N, H] value, in order of steps
};

Gradients run_steps(const Work& work, const Incoming& grad, const Saved& saved, const Tensor& weight_hh,
                    const Tensor& grad_c) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  Gradients out{.gates = work.new_io({T, N, D * 4 * H}),
                .first_gates = new_zeros(work.x, {D, N, 4 * H}),
                .projected = {},
                .unprojected = {}};
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
                    .c0 = work.c0.data_ptr(),
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
    backward_cells(args, step, work.type(), work.plan, work.stream());
  }
  return out;
}

// grad_weight_hh: each step's gradient of the gates times the state it started from, which is h0 for the
// first and y of its neighbour for the others (zero, as it must be, where a row of the reverse direction
// begins).
Tensor weight_hh_gradient(const Work& work, const Gradients& grads, const Tensor& y, int64_t d) {
  const Layer& layer = work.layer;
  const int64_t T = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  const Tensor grad = work.new_io({4 * H, P});
  const int64_t later = N * D * 4 * H, later_y = N * D * P;  // one step further
  Product product{
      .m = 4 * H,
      .n = P,
      .k = N,
      .a = {.data = work.at(grads.first_gates, d * N * 4 * H), .stride = 4 * H, .transposed = true},
      .b = {.data = work.at(work.h0, d * N * P), .stride = P},
      .c = grad.data_ptr(),
      .c_stride = P};
  work.context.multiply(product);
  product.k = (T - 1) * N;
  product.a.data = work.at(grads.gates, (d == 0 ? later : 0) + d * 4 * H);
  product.a.stride = D * 4 * H;
  product.b.data = work.at(y, (d == 0 ? 0 : later_y) + d * P);
  product.b.stride = D * P;
  product.accumulate = true;
  if (T > 1) work.context.multiply(product);
  return grad;
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
      grad.c_n ? converted(*grad.c_n, work.compute, work) : new_zeros(work.x, {D, N, H}, work.compute);
  if (work.empty()) {
    if (need_x) out.grad_x = work.new_io({T, N, I});
    if (need_h0) out.grad_h0 = grad.h_n ? clone(*grad.h_n) : new_zeros(work.x, {D, N, P});
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
  const Gradients grads = run_steps(work, grad, saved, weight_hh, grad_c);
  out.grad_c0 = converted(grad_c, work.io, work);

  if (need_h0) {
    out.grad_h0 = work.new_io({D, N, P});
    const bool handed_through = work.lengths && grad.h_n;
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
                             .b = {.data = work.x.data_ptr(), .stride = I},
                             .c = out.grad_weights[at].data_ptr(),
                             .c_stride = I});
    }
    if (need_weights[at + 1]) out.grad_weights[at + 1] = weight_hh_gradient(work, grads, saved.y, d);
    if (layer.biased && (need_weights[at + 2] || need_weights[at + 3])) {
      const Tensor rows = torch::stable::view(grads.gates, {T * N, D * 4 * H});
      const Tensor sum = torch::stable::sum(slice(rows, 1, d * 4 * H, 4 * H), std::vector<int64_t>{0});
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
    const std::optional<Tensor>& lengths, bool tf32, const Tensor& y, const Tensor& cell, const Tensor& gates,
    bool need_x, bool need_h0, const std::vector<int64_t>& need_weights) {
  check_backward(Layer(x, h0, c0, weights, lengths), {grad_y, grad_h_n, grad_c_n, grad_cell},
                 {x, h0, c0, y, cell, gates}, need_weights);
  const Work work(x, h0, c0, weights, lengths, tf32);
  const Incoming grad{prepare(grad_y, work.io), prepare(grad_h_n, work.io), prepare(grad_c_n, work.io),
                      prepare(grad_cell, work.compute)};
  const Saved saved{work.x,
                    work.h0,
                    work.c0,
                    prepare(y, work.io),
                    prepare(cell, work.compute),
                    prepare(gates, work.compute)};
  const BackwardResult out = run_backward(work, grad, saved, need_x, need_h0, need_weights);
  return {out.grad_x, out.grad_h0, out.grad_c0, out.grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CUDA, m) {
  m.impl("lstm_inference", TORCH_BOX(&lstm_inference));
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
}

}  // namespace fusedlstm::cuda
