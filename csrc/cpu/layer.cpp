// One layer on the CPU: the matrix products over all steps, the tensors, and the arguments of the recurrence.
#include <algorithm>
#include <numeric>
#include <tuple>

#include "../checks.h"
#include "recurrence.h"

namespace fusedlstm::cpu {
namespace {

using torch::stable::contiguous;
using torch::stable::copy_;
using torch::stable::matmul;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::select;
using torch::stable::transpose;
using torch::stable::view;

// The other way round: results go back to the input's type.
Tensor restore(const Tensor& tensor, const Tensor& x) {
  return tensor.scalar_type() == x.scalar_type() ? tensor : torch::stable::to(tensor, x.scalar_type());
}

// Which rows take part in which step, and the zeros that a segment begins from.
struct Schedule {
  std::vector<int64_t> length, order, active;
  const bool* resets;
  std::optional<Tensor> zeros;  // [4H]

  Schedule(const Layer& layer, const Inputs& in)
      : length(layer.batch, layer.steps),
        order(layer.batch),
        active(layer.steps, layer.batch),
        resets(pointer<bool>(in.resets)) {
    if (resets) zeros = new_zeros(in.x, {4 * layer.hidden});
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

// The arguments of a layer made dense, in the type that is computed in, and what every part of its work
// needs.
struct Work {
  Inputs in;
  Layer layer;
  Schedule schedule;
  Sizes size;
  int threads;

  explicit Work(const Inputs& inputs)
      : in(checked(inputs)),
        layer(in),
        schedule(layer, in),
        size{layer.steps, layer.batch, layer.hidden, layer.outputs},
        threads(static_cast<int>(torch::stable::get_num_threads())) {}

  bool is_double() const { return in.x.scalar_type() == ScalarType::Double; }
  // [T, N, columns]; the kernels write the steps of each row, and what lies past its length reads as zero.
  Tensor new_sequence(int64_t columns) const {
    if (in.lengths) return new_zeros(in.x, {layer.steps, layer.batch, columns});
    return new_empty(in.x, {layer.steps, layer.batch, columns});
  }

 private:
  static Inputs checked(const Inputs& inputs) {
    (void)Layer(inputs);  // the caller's own tensors, before any is converted
    return prepare(inputs, compute_type(inputs.x));
  }
};

template <class T>
std::vector<T> summed_bias(const Layer& layer, int64_t d) {
  if (!layer.biased) return {};
  std::vector<T> bias(4 * layer.hidden);
  const T *ih = pointer<T>(layer.bias_ih(d)), *hh = pointer<T>(layer.bias_hh(d));
  for (size_t j = 0; j < bias.size(); ++j) bias[j] = ih[j] + hh[j];
  return bias;
}

// out += a b, for matrices.
void add_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
}

// [T, N, P]: the state that each step of direction d started from.
template <class T>
Tensor hidden_before(const Work& work, const Tensor& y, int64_t d) {
  const Layer& layer = work.layer;
  const int64_t steps = layer.steps, N = layer.batch, P = layer.outputs;
  const std::vector<int64_t>& length = work.schedule.length;
  Tensor before = new_zeros(work.in.x, {steps, N, P});
  if (steps > 1) {
    Tensor later = slice(before, 0, d == 1 ? 0 : 1, steps - 1);
    copy_(later, slice(slice(y, 0, d == 1 ? 1 : 0, steps - 1), 2, d * P, P));
  }
  const auto row_at = [&](int64_t t, int64_t row) { return pointer<T>(before) + (t * N + row) * P; };
  for (int64_t row = 0; row < N; ++row)
    if (length[row] > 0)
      std::copy_n(pointer<T>(work.in.h0) + (d * N + row) * P, P, row_at(d == 1 ? length[row] - 1 : 0, row));
  if (const bool* const resets = work.schedule.resets)
    for (int64_t begin = d; begin < steps; ++begin)  // where a segment begins, the step before it ends one
      for (int64_t row = 0; row < N; ++row)
        if (begin < length[row] && resets[begin * N + row]) std::fill_n(row_at(begin - d, row), P, T(0));
  return before;
}

// [T, N, D*4H]: the input's share of the gates.
Tensor input_gates(const Work& work) {
  const Layer& layer = work.layer;
  const Tensor weight_ih = stack(layer.of_each_direction(&Layer::weight_ih));
  return view(matmul(view(work.in.x, {layer.steps * layer.batch, layer.input}), transpose(weight_ih, 0, 1)),
              {layer.steps, layer.batch, layer.directions * 4 * layer.hidden});
}

// gates += before W_hh^T in direction d, for all steps at once.
void add_recurrent_gates(const Work& work, const Tensor& gates, const Tensor& before, int64_t d) {
  const Layer& layer = work.layer;
  const int64_t rows = layer.steps * layer.batch, G = 4 * layer.hidden;
  add_product(slice(view(gates, {rows, layer.directions * G}), 1, d * G, G),
              view(before, {rows, layer.outputs}), transpose(layer.weight_hh(d), 0, 1));
}

// Arguments of direction d that no pass has a choice in.
template <class T>
ForwardArgs<T> forward_args(const Work& work, const Tensor& gates, const std::vector<T>& bias,
                            const Tensor& workspace, int64_t d) {
  const Layer& layer = work.layer;
  const int64_t N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;
  ForwardArgs<T> args{};
  args.size = work.size;
  args.rows = work.schedule.rows();
  args.reverse = d == 1;
  args.bias = layer.biased ? bias.data() : nullptr;
  args.h0 = pointer<T>(work.in.h0) + d * N * P;
  args.c0 = pointer<T>(work.in.c0) + d * N * H;
  args.gates = pointer<T>(gates) + d * 4 * H;
  args.gates_stride = D * 4 * H;
  args.zeros = pointer<T>(work.schedule.zeros);
  args.workspace = pointer<T>(workspace);
  return args;
}

struct ForwardResult {
  Tensor y, h_n, c_n, cell, gates;
};

template <class T>
ForwardResult run_forward(const Work& work, bool keep_cells, bool keep_gates) {
  const Layer& layer = work.layer;
  const Tensor& x = work.in.x;
  const int64_t N = layer.batch, H = layer.hidden, P = layer.outputs, D = layer.directions;

  ForwardResult out;
  out.gates = input_gates(work);
  out.y = work.new_sequence(D * P);
  out.h_n = new_empty(x, {D, N, P});
  out.c_n = new_empty(x, {D, N, H});
  out.cell = keep_cells ? work.new_sequence(D * H) : new_empty(x, {0});
  const Tensor workspace = new_empty(x, {forward_workspace(work.size)});

  for (int64_t d = 0; d < D; ++d) {
    const std::vector<T> bias = summed_bias<T>(layer, d);
    ForwardArgs<T> args = forward_args<T>(work, out.gates, bias, workspace, d);
    if (layer.steps == 1) {
      // The GEMM library reads W_hh as it stands; packing it would cost more than the step.
      const Tensor h0 = slice(work.in.h0, 0, d, 1);
      add_recurrent_gates(work, out.gates, work.in.resets ? hidden_before<T>(work, out.y, d) : h0, d);
    } else {
      args.weight_hh = pointer<T>(layer.weight_hh(d));
    }
    if (layer.projected) args.weight_hr = pointer<T>(layer.weight_hr(d));
    args.keep_gates = keep_gates;
    args.y = pointer<T>(out.y) + d * P;
    args.y_stride = D * P;
    args.h_n = pointer<T>(out.h_n) + d * N * P;
    args.c_n = pointer<T>(out.c_n) + d * N * H;
    args.c = keep_cells ? pointer<T>(out.cell) + d * H : args.c_n;
    args.c_stride = keep_cells ? D * H : H;
    args.c_step = keep_cells ? N * D * H : 0;
    forward(args, work.threads);
  }
  if (!keep_gates) out.gates = new_empty(x, {0});
  return out;
}

ForwardResult run_forward(const Inputs& inputs, bool keep_cells, bool keep_gates) {
  const Work work(inputs);
  ForwardResult out = work.is_double() ? run_forward<double>(work, keep_cells, keep_gates)
                                       : run_forward<float>(work, keep_cells, keep_gates);
  out.y = restore(out.y, inputs.x);
  out.h_n = restore(out.h_n, inputs.x);
  out.c_n = restore(out.c_n, inputs.x);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> lstm_inference(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                                  const std::vector<Tensor>& weights,
                                                  const std::optional<Tensor>& lengths,
                                                  const std::optional<Tensor>& resets, bool /*allow_tf32*/) {
  ForwardResult out = run_forward({x, h0, c0, weights, lengths, resets}, false, false);
  return {out.y, out.h_n, out.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(
    const Tensor& x, const Tensor& h0, const Tensor& c0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets, bool /*allow_tf32*/,
    bool keep_cells, bool keep_gates) {
  ForwardResult out = run_forward({x, h0, c0, weights, lengths, resets}, keep_cells, keep_gates);
  return {out.y, out.h_n, out.c_n, out.cell, out.gates};
}

template <class T>
std::tuple<Tensor, Tensor> rebuild(const Work& work, const Tensor& y) {
  const Layer& layer = work.layer;
  const Tensor gates = input_gates(work), cell = work.new_sequence(layer.directions * layer.hidden);
  const Tensor workspace = new_empty(y, {forward_workspace(work.size)});
  for (int64_t d = 0; d < layer.directions; ++d) {
    add_recurrent_gates(work, gates, hidden_before<T>(work, y, d), d);
    const std::vector<T> bias = summed_bias<T>(layer, d);
    ForwardArgs<T> args = forward_args<T>(work, gates, bias, workspace, d);
    args.keep_gates = true;
    args.c = pointer<T>(cell) + d * layer.hidden;
    args.c_stride = layer.directions * layer.hidden;
    args.c_step = layer.batch * args.c_stride;
    forward(args, work.threads);
  }
  return {cell, gates};
}

std::tuple<Tensor, Tensor> lstm_rebuild(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                        const std::vector<Tensor>& weights,
                                        const std::optional<Tensor>& lengths,
                                        const std::optional<Tensor>& resets, bool /*allow_tf32*/,
                                        const Tensor& y) {
  const Work work({x, h0, c0, weights, lengths, resets});
  check_outputs(work.layer, y);
  const Tensor outputs = prepare(y, work.in.x.scalar_type());
  return work.is_double() ? rebuild<double>(work, outputs) : rebuild<float>(work, outputs);
}

// [N, 4H]: the gates' gradient at each row's first step in direction d; zero for a row of no steps and for
// one that a reset keeps from its first state.
template <class T>
Tensor first_gradient(const Work& work, const Tensor& grad_gates, int64_t d) {
  const Layer& layer = work.layer;
  const int64_t N = layer.batch, G = 4 * layer.hidden, stride = layer.directions * G;
  Tensor first = new_zeros(grad_gates, {N, G});
  for (int64_t row = 0; row < N; ++row) {
    const int64_t length = work.schedule.length[row];
    if (length == 0 || (d == 0 && work.schedule.resets && work.schedule.resets[row])) continue;
    const int64_t t = d == 1 ? length - 1 : 0;
    std::copy_n(pointer<T>(grad_gates) + (t * N + row) * stride + d * G, G, pointer<T>(first) + row * G);
  }
  return first;
}

// grad^T rows, [G, P], for grad [K, G] and rows [K, P]. A product over all K at once has the rounding error
// of sums of K terms, where nn.LSTM, which adds up one product per step, has that of sums of N terms: at K =
// 700 its error was 2.4 times smaller. Up to 128 terms at a time it is at most twice nn.LSTM's, and a product
// takes a tenth longer.
Tensor summed_in_parts(const Tensor& grad, const Tensor& rows) {
  const int64_t K = rows.size(0), part = std::clamp<int64_t>(K / 4, 32, 128), parts = (K + part - 1) / part;
  Tensor sum = new_zeros(grad, {grad.size(1), rows.size(1)});
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t begin = K * i / parts, count = K * (i + 1) / parts - begin;
    add_product(sum, transpose(slice(grad, 0, begin, count), 0, 1), slice(rows, 0, begin, count));
  }
  return sum;
}

struct BackwardResult {
  Tensor grad_x, grad_h0, grad_c0;
  std::vector<Tensor> grad_weights;
};

template <class T>
BackwardResult run_backward(const Work& work, const Incoming& grad, const Saved& saved, bool need_x,
                            bool need_h0, const std::vector<int64_t>& need_weights) {
  const Layer& layer = work.layer;
  const int64_t steps = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs,
                D = layer.directions;
  const std::vector<int64_t>& length = work.schedule.length;
  const Tensor& like = work.in.x;

  // What is not needed is returned empty; each a tensor of its own, as outputs of an operator must be.
  BackwardResult out{new_empty(like, {0}), new_empty(like, {0}), new_empty(like, {D, N, H}), {}};
  for (size_t i = 0; i < layer.weights.size(); ++i) out.grad_weights.push_back(new_empty(like, {0}));
  if (need_h0) out.grad_h0 = new_zeros(like, {D, N, P});
  if (grad.c_n) {
    copy_(out.grad_c0, *grad.c_n);
  } else {
    torch::stable::zero_(out.grad_c0);
  }
  const Tensor grad_gates = work.new_sequence(D * 4 * H);
  const Tensor grad_gates_2d = view(grad_gates, {steps * N, D * 4 * H});
  const Tensor x_2d = view(work.in.x, {steps * N, layer.input});
  const Tensor workspace = new_empty(like, {backward_workspace(work.size)});

  for (int64_t d = 0; d < D; ++d) {
    std::optional<Tensor> grad_p, h;
    if (layer.projected) {
      grad_p = work.new_sequence(P);
      h = work.new_sequence(H);
    }
    backward<T>({.size = work.size,
                 .rows = work.schedule.rows(),
                 .reverse = d == 1,
                 .weight_hh = steps == 1 ? nullptr : pointer<T>(layer.weight_hh(d)),
                 .weight_hr = layer.projected ? pointer<T>(layer.weight_hr(d)) : nullptr,
                 .c0 = pointer<T>(work.in.c0) + d * N * H,
                 .gates = pointer<T>(saved.gates) + d * 4 * H,
                 .c = pointer<T>(saved.cell) + d * H,
                 .grad_y = grad.y ? pointer<T>(grad.y) + d * P : nullptr,
                 .grad_c = grad.cell ? pointer<T>(grad.cell) + d * H : nullptr,
                 .grad_h_n = grad.h_n ? pointer<T>(grad.h_n) + d * N * P : nullptr,
                 .gates_stride = D * 4 * H,
                 .y_stride = D * P,
                 .c_stride = D * H,
                 .grad_gates = pointer<T>(grad_gates) + d * 4 * H,
                 .grad_c0 = pointer<T>(out.grad_c0) + d * N * H,
                 .grad_p = pointer<T>(grad_p),
                 .h = pointer<T>(h),
                 .zeros = pointer<T>(work.schedule.zeros),
                 .workspace = pointer<T>(workspace)},
                work.threads);

    const Tensor of_direction = slice(grad_gates_2d, 1, d * 4 * H, 4 * H);
    if (need_h0) {
      add_product(select(out.grad_h0, 0, d), first_gradient<T>(work, grad_gates, d), layer.weight_hh(d));
      for (int64_t row = d * N; grad.h_n && row < (d + 1) * N; ++row) {
        if (length[row % N] > 0) continue;  // a row of no steps hands its state through
        std::copy_n(pointer<T>(grad.h_n) + row * P, P, pointer<T>(out.grad_h0) + row * P);
      }
    }
    const int64_t at = layer.first_weight(d);
    if (need_weights[at]) out.grad_weights[at] = matmul(transpose(of_direction, 0, 1), x_2d);
    if (need_weights[at + 1]) {
      const Tensor before = hidden_before<T>(work, saved.y, d);
      out.grad_weights[at + 1] = summed_in_parts(of_direction, view(before, {steps * N, P}));
    }
    for (int64_t bias = at + 2; layer.biased && bias < at + 4; ++bias)
      if (need_weights[bias])
        out.grad_weights[bias] = torch::stable::sum(of_direction, std::vector<int64_t>{0});
    const int64_t hr = at + layer.weights_per_direction() - 1;
    if (layer.projected && need_weights[hr])
      out.grad_weights[hr] = summed_in_parts(view(*grad_p, {steps * N, P}), view(*h, {steps * N, H}));
  }
  if (need_x)
    out.grad_x = view(matmul(grad_gates_2d, stack(layer.of_each_direction(&Layer::weight_ih))),
                      {steps, N, layer.input});
  return out;
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell, const Tensor& x,
    const Tensor& h0, const Tensor& c0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets, bool /*allow_tf32*/,
    const Tensor& y, const Tensor& cell, const Tensor& gates, bool need_x, bool need_h0,
    const std::vector<int64_t>& need_weights) {
  const Work work({x, h0, c0, weights, lengths, resets});
  check_backward(work.layer, {grad_y, grad_h_n, grad_c_n, grad_cell}, {y, cell, gates}, need_weights);
  const ScalarType type = work.in.x.scalar_type();
  const Saved saved{prepare(y, type), prepare(cell, type), prepare(gates, type)};
  const Incoming grad{prepare(grad_y, type), prepare(grad_h_n, type), prepare(grad_c_n, type),
                      prepare(grad_cell, type)};
  BackwardResult out = work.is_double()
                           ? run_backward<double>(work, grad, saved, need_x, need_h0, need_weights)
                           : run_backward<float>(work, grad, saved, need_x, need_h0, need_weights);
  for (Tensor& weight : out.grad_weights) weight = restore(weight, x);
  return {restore(out.grad_x, x), restore(out.grad_h0, x), restore(out.grad_c0, x), out.grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CPU, m) {
  m.impl("lstm_inference", TORCH_BOX(&lstm_inference));
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_rebuild", TORCH_BOX(&lstm_rebuild));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
}

}  // namespace fusedlstm::cpu
