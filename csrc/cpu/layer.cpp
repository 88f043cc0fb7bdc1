// One layer on the CPU: tensors in, tensors out, and the arguments of the passes.
#include <algorithm>
#include <array>
#include <numeric>
#include <tuple>

#include "../checks.h"
#include "args.h"
#include "workspace.h"

namespace fusedlstm::cpu {
namespace {

using torch::stable::copy_;
using torch::stable::new_empty;
using torch::stable::new_zeros;

// Results go back to the input's type.
Tensor restore(const Tensor& tensor, const Tensor& x) {
  return tensor.scalar_type() == x.scalar_type() ? tensor : torch::stable::to(tensor, x.scalar_type());
}

// Uninitialized, on huge pages where it is large.
Tensor new_large(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  Tensor tensor = new_empty(like, sizes);
  prefer_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

// Which rows take part in which step.
struct Schedule {
  std::vector<int64_t> length, order, active;
  const bool* resets;

  Schedule(const Layer& layer, const Inputs& in)
      : length(layer.batch, layer.steps),
        order(layer.batch),
        active(layer.steps, layer.batch),
        resets(pointer<bool>(in.resets)) {
    std::iota(order.begin(), order.end(), 0);
    if (!in.lengths) return;
    std::copy_n(pointer<int64_t>(in.lengths), layer.batch, length.begin());
    for (int64_t row = 0; row < layer.batch; ++row)
      STD_TORCH_CHECK(length[row] >= 0 && length[row] <= layer.steps, "lengths[", row, "] must be in 0..",
                      layer.steps, " (the steps of input), got ", length[row]);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
    for (int64_t t = 0, count = layer.batch; t < layer.steps; ++t) {
      while (count > 0 && length[order[count - 1]] <= t) --count;
      active[t] = count;
    }
  }

  Rows rows() const { return {length.data(), order.data(), active.data(), resets}; }
};

// The arguments of a layer made dense, in the types that are computed in, and what every part of its work
// needs.
struct Work {
  Inputs in;
  Layer layer;
  Schedule schedule;
  Sizes size;
  ThreadPlan plan;

  Work(const Inputs& inputs, Pass pass)
      : in(prepared(inputs, pass)),
        layer(inputs, in.weights),
        schedule(layer, in),
        size{layer.steps, layer.batch, layer.input, layer.hidden, layer.outputs, layer.directions},
        plan(make_thread_plan(size, static_cast<int64_t>(torch::stable::get_num_threads()), pass)) {}

  // [T, N, columns]; the passes write the steps of each row, and what lies past its length reads as zero.
  Tensor new_sequence(int64_t columns) const {
    Tensor sequence = new_large(in.x, {layer.steps, layer.batch, columns});
    if (in.lengths) torch::stable::zero_(sequence);
    return sequence;
  }

 private:
  // 16-bit weights are read as they are by the forward pass; the backward pass turns them over, widened.
  static Inputs prepared(const Inputs& inputs, Pass pass) {
    const ScalarType type = compute_type(inputs.x);
    return prepare(inputs, type, pass == Pass::forward ? inputs.x.scalar_type() : type);
  }
};

// Calls function(T{}, W{}) with the types that are computed in and that the weights have.
template <class Function>
auto with_types(ScalarType weights, const Function& function) {
  switch (weights) {
    case ScalarType::Double:
      return function(double{}, double{});
    case ScalarType::BFloat16:
      return function(float{}, BFloat16{});
    case ScalarType::Half:
      return function(float{}, Half{});
    default:
      return function(float{}, float{});
  }
}

// [D, 4H]: bias_ih + bias_hh.
template <class T>
std::vector<T> summed_biases(const Work& work) {
  const Layer& layer = work.layer;
  if (!layer.biased) return {};
  const int64_t G = 4 * layer.hidden;
  std::vector<T> bias(layer.directions * G);
  for (int64_t d = 0; d < layer.directions; ++d) {
    const ScalarType type = work.in.x.scalar_type();
    const Tensor ih = prepare(layer.bias_ih(d), type), hh = prepare(layer.bias_hh(d), type);
    for (int64_t j = 0; j < G; ++j) bias[d * G + j] = pointer<T>(ih)[j] + pointer<T>(hh)[j];
  }
  return bias;
}

struct ForwardResult {
  Tensor y, h_n, c_n, cell, gates;
};

// What a forward pass writes beside its outputs.
struct Wanted {
  bool cells, gates;
  bool recompute;  // `y` is given, and outputs are not made
};

template <class T, class W>
void run_forward(const Work& work, const Wanted& wanted, const ForwardResult& out) {
  const Layer& layer = work.layer;
  const int64_t N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions, G = 4 * H;
  const std::vector<T> biases = summed_biases<T>(work);
  const std::vector<T> zeros(work.schedule.resets ? std::max(H, P) : 0);
  const bool packs = work.plan.packs, in_step = work.plan.time_block == 1;
  const int64_t ih_room = packs ? packed_weights(layer.input, H) : 0,
                hh_room = packs ? packed_weights(P, H) : 0,
                gates_room = wanted.gates || in_step ? 0 : work.plan.time_block * N * G,
                h_room = layer.projected ? N * H : 0;
  const int64_t room_of_each = (ih_room + hh_room + gates_room + h_room + 15) / 16 * 16;  // lines of caches
  const Workspace<T> workspace(D * room_of_each + forward_workspace<T, W>(work.size, work.plan));
  std::array<ForwardArgs<T, W>, 2> directions;
  for (int64_t d = 0; d < D; ++d) {
    T* const packed_ih = workspace.data() + d * room_of_each;
    T *const packed_hh = packed_ih + ih_room, *const room = packed_hh + hh_room;
    directions[d] = {.size = work.size,
                     .rows = work.schedule.rows(),
                     .reverse = d == 1,
                     .weight_ih = pointer<W>(layer.weight_ih(d)),
                     .weight_hh = pointer<W>(layer.weight_hh(d)),
                     .weight_hr = layer.projected ? pointer<W>(layer.weight_hr(d)) : nullptr,
                     .packed_ih = packs ? packed_ih : nullptr,
                     .packed_hh = packs ? packed_hh : nullptr,
                     .bias = layer.biased ? biases.data() + d * G : nullptr,
                     .x = pointer<T>(work.in.x),
                     .h0 = pointer<T>(work.in.h0) + d * N * P,
                     .c0 = pointer<T>(work.in.c0) + d * N * H,
                     .zeros = zeros.data(),
                     .gates = wanted.gates ? pointer<T>(out.gates) + d * G : room,
                     .gates_steps = wanted.gates ? layer.steps : work.plan.time_block,
                     .gates_stride = wanted.gates ? D * G : G,
                     .keep_gates = wanted.gates,
                     .input_in_step = in_step,
                     .recompute = wanted.recompute,
                     .y = pointer<T>(out.y) + d * P,
                     .y_stride = D * P,
                     .h = layer.projected ? room + gates_room : nullptr};
    ForwardArgs<T, W>& args = directions[d];
    if (!wanted.recompute) {
      args.h_n = pointer<T>(out.h_n) + d * N * P;
      args.c_n = pointer<T>(out.c_n) + d * N * H;
    }
    args.cells = wanted.cells ? pointer<T>(out.cell) + d * H : args.c_n;
    args.cells_stride = wanted.cells ? D * H : H;
    args.cells_step = wanted.cells ? N * D * H : 0;
  }
  forward(directions.data(), D, workspace.data() + D * room_of_each, work.plan);
}

void run_forward(const Work& work, const Wanted& wanted, const ForwardResult& out) {
  with_types(work.layer.weight_ih(0).scalar_type(),
             [&]<class T, class W>(T, W) { run_forward<T, W>(work, wanted, out); });
}

ForwardResult forward_result(const Inputs& inputs, bool keep_cells, bool keep_gates) {
  const Work work(inputs, Pass::forward);
  const Layer& layer = work.layer;
  const Tensor& x = work.in.x;
  const int64_t N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  ForwardResult out;
  out.y = work.new_sequence(D * P);
  out.h_n = new_empty(x, {D, N, P});
  out.c_n = new_empty(x, {D, N, H});
  if (keep_cells) out.cell = work.new_sequence(D * H);
  if (keep_gates) out.gates = work.new_sequence(D * 4 * H);
  run_forward(work, {keep_cells, keep_gates, false}, out);
  out.y = restore(out.y, inputs.x);
  out.h_n = restore(out.h_n, inputs.x);
  out.c_n = restore(out.c_n, inputs.x);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> lstm_inference(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                                  const std::vector<Tensor>& weights,
                                                  const std::optional<Tensor>& lengths,
                                                  const std::optional<Tensor>& resets, bool /*allow_tf32*/) {
  ForwardResult out = forward_result({x, h0, c0, weights, lengths, resets}, false, false);
  return {out.y, out.h_n, out.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(
    const Tensor& x, const Tensor& h0, const Tensor& c0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets, bool /*allow_tf32*/,
    bool keep_cells, bool keep_gates) {
  ForwardResult out = forward_result({x, h0, c0, weights, lengths, resets}, keep_cells, keep_gates);
  if (!keep_cells) out.cell = new_empty(out.y, {0}, compute_type(x));
  if (!keep_gates) out.gates = new_empty(out.y, {0}, compute_type(x));
  return {out.y, out.h_n, out.c_n, out.cell, out.gates};
}

std::tuple<Tensor, Tensor> lstm_recompute(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                          const std::vector<Tensor>& weights,
                                          const std::optional<Tensor>& lengths,
                                          const std::optional<Tensor>& resets, bool /*allow_tf32*/,
                                          const Tensor& y) {
  const Work work({x, h0, c0, weights, lengths, resets}, Pass::forward);
  check_outputs(work.layer, y);
  const int64_t D = work.layer.directions, H = work.layer.hidden;
  ForwardResult out;
  out.y = prepare(y, work.in.x.scalar_type());
  out.cell = work.new_sequence(D * H);
  out.gates = work.new_sequence(D * 4 * H);
  run_forward(work, {true, true, true}, out);
  return {out.cell, out.gates};
}

struct BackwardResult {
  Tensor grad_x, grad_h0, grad_c0;
  std::vector<Tensor> grad_weights;
};

template <class T>
BackwardResult run_backward(const Work& work, const Incoming& grad, const Saved& saved, bool need_x,
                            bool need_h0, const std::vector<int64_t>& need_weights) {
  const Layer& layer = work.layer;
  const int64_t N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  const Tensor& x = work.in.x;

  // What is not needed is returned empty; each a tensor of its own, as outputs of an operator must be.
  const auto gradient_of = [&](const Tensor& tensor, bool needed) {
    if (!needed) return new_empty(tensor, {0});
    return layer.steps == 0 ? new_zeros(tensor, tensor.sizes()) : new_large(tensor, tensor.sizes());
  };
  BackwardResult out{gradient_of(x, need_x), gradient_of(work.in.h0, need_h0), new_empty(x, {D, N, H}), {}};
  for (size_t i = 0; i < layer.weights.size(); ++i)
    out.grad_weights.push_back(gradient_of(layer.weights[i], need_weights[i]));
  if (grad.c_n)
    copy_(out.grad_c0, *grad.c_n);
  else
    torch::stable::zero_(out.grad_c0);
  const auto wanted = [](const Tensor& tensor, bool needed) { return needed ? pointer<T>(tensor) : nullptr; };

  const std::vector<T> zeros(4 * H);
  const Workspace<T> workspace(backward_workspace(work.size, work.plan.time_block, layer.projected));
  for (int64_t d = 0; d < D; ++d) {
    const int64_t at = layer.first_weight(d), hr = at + layer.weights_per_direction() - 1;
    const auto weight_gradient = [&](int64_t i) { return wanted(out.grad_weights[i], need_weights[i]); };
    // Both biases have the same gradient: formed for one, copied for the other.
    const int64_t bias = layer.biased ? at + (need_weights[at + 2] ? 2 : 3) : -1;
    backward<T>({.size = work.size,
                 .rows = work.schedule.rows(),
                 .reverse = d == 1,
                 .weight_ih = pointer<T>(layer.weight_ih(d)),
                 .weight_hh = pointer<T>(layer.weight_hh(d)),
                 .weight_hr = layer.projected ? pointer<T>(layer.weight_hr(d)) : nullptr,
                 .x = pointer<T>(x),
                 .h0 = pointer<T>(work.in.h0) + d * N * P,
                 .c0 = pointer<T>(work.in.c0) + d * N * H,
                 .zeros = zeros.data(),
                 .y = pointer<T>(saved.y) + d * P,
                 .gates = pointer<T>(saved.gates) + d * 4 * H,
                 .cells = pointer<T>(saved.cell) + d * H,
                 .grad_y = grad.y ? pointer<T>(grad.y) + d * P : nullptr,
                 .grad_cells = grad.cell ? pointer<T>(grad.cell) + d * H : nullptr,
                 .grad_h_n = grad.h_n ? pointer<T>(grad.h_n) + d * N * P : nullptr,
                 .gates_stride = D * 4 * H,
                 .y_stride = D * P,
                 .cells_stride = D * H,
                 .grad_c0 = pointer<T>(out.grad_c0) + d * N * H,
                 .grad_x = wanted(out.grad_x, need_x),
                 .adds_to_grad_x = d == 1,
                 .grad_h0 = need_h0 ? pointer<T>(out.grad_h0) + d * N * P : nullptr,
                 .grad_weight_ih = weight_gradient(at),
                 .grad_weight_hh = weight_gradient(at + 1),
                 .grad_weight_hr = layer.projected ? weight_gradient(hr) : nullptr,
                 .grad_bias = layer.biased ? weight_gradient(bias) : nullptr,
                 .workspace = workspace.data()},
                work.plan);
    if (layer.biased && need_weights[at + 2] && need_weights[at + 3])
      copy_(out.grad_weights[at + 3], out.grad_weights[at + 2]);
    for (int64_t row = d * N; need_h0 && grad.h_n && row < (d + 1) * N; ++row)
      if (work.schedule.length[row % N] == 0)  // a row of no steps hands its state through
        std::copy_n(pointer<T>(grad.h_n) + row * P, P, pointer<T>(out.grad_h0) + row * P);
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell, const Tensor& x,
    const Tensor& h0, const Tensor& c0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets, bool /*allow_tf32*/,
    const Tensor& y, const Tensor& cell, const Tensor& gates, bool need_x, bool need_h0,
    const std::vector<int64_t>& need_weights) {
  const Work work({x, h0, c0, weights, lengths, resets}, Pass::backward);
  check_backward(work.layer, {grad_y, grad_h_n, grad_c_n, grad_cell}, {y, cell, gates}, need_weights);
  const ScalarType type = work.in.x.scalar_type();
  const Saved saved{prepare(y, type), prepare(cell, type), prepare(gates, type)};
  const Incoming grad{prepare(grad_y, type), prepare(grad_h_n, type), prepare(grad_c_n, type),
                      prepare(grad_cell, type)};
  BackwardResult out = type == ScalarType::Double
                           ? run_backward<double>(work, grad, saved, need_x, need_h0, need_weights)
                           : run_backward<float>(work, grad, saved, need_x, need_h0, need_weights);
  for (Tensor& weight : out.grad_weights) weight = restore(weight, x);
  return {restore(out.grad_x, x), restore(out.grad_h0, x), restore(out.grad_c0, x), out.grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CPU, m) {
  m.impl("lstm_inference", TORCH_BOX(&lstm_inference));
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_recompute", TORCH_BOX(&lstm_recompute));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
}

}  // namespace fusedlstm::cpu
