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

struct RowOrder {
  std::vector<int64_t> length, order, active;

  RowOrder(const Layer& layer, const std::optional<Tensor>& lengths)
      : length(layer.batch, layer.steps), order(layer.batch), active(layer.steps, layer.batch) {
    std::iota(order.begin(), order.end(), 0);
    if (!lengths) return;
    const Tensor values = contiguous(*lengths);
    std::copy_n(pointer<int64_t>(values), layer.batch, length.begin());
    for (int64_t row = 0; row < layer.batch; ++row)
      STD_TORCH_CHECK(length[row] >= 0 && length[row] <= layer.steps, "lengths[", row, "] must be in 0..",
                      layer.steps, " (the steps of input), got ", length[row]);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
    for (int64_t t = 0, count = layer.batch; t < layer.steps; ++t) {
      while (count > 0 && length[order[count - 1]] <= t) --count;
      active[t] = count;
    }
  }

  Rows view() const { return {length.data(), order.data(), active.data()}; }
};

template <class T>
std::vector<T> summed_bias(const Layer& layer, int64_t d) {
  if (!layer.biased) return {};
  std::vector<T> bias(4 * layer.hidden);
  const T *ih = pointer<T>(layer.bias_ih(d)), *hh = pointer<T>(layer.bias_hh(d));
  for (size_t j = 0; j < bias.size(); ++j) bias[j] = ih[j] + hh[j];
  return bias;
}

template <class T>
void add_rows(T* out, int64_t out_stride, const Tensor& rows) {
  const T* in = pointer<T>(rows);
  for (int64_t row = 0; row < rows.size(0); ++row)
    for (int64_t j = 0; j < rows.size(1); ++j) out[row * out_stride + j] += in[row * rows.size(1) + j];
}

// [T, N, columns]; the kernels write the steps of each row, and what lies past its length reads as zero.
Tensor new_sequence(const Tensor& like, const Layer& layer, int64_t columns,
                    const std::optional<Tensor>& lengths) {
  if (lengths) return new_zeros(like, {layer.steps, layer.batch, columns});
  return new_empty(like, {layer.steps, layer.batch, columns});
}

struct ForwardResult {
  Tensor y, h_n, c_n, cell, gates;
};

template <class T>
ForwardResult run_forward(const Tensor& x, const Tensor& h0, const Tensor& c0, const Layer& layer,
                          const std::optional<Tensor>& lengths, bool keep) {
  const int64_t steps = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs,
                D = layer.directions;
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  const RowOrder rows(layer, lengths);
  const Sizes size{steps, N, H, P};

  ForwardResult out;
  out.gates = view(matmul(view(x, {steps * N, layer.input}),
                          transpose(stack(layer.of_each_direction(&Layer::weight_ih)), 0, 1)),
                   {steps, N, D * 4 * H});
  out.y = new_sequence(x, layer, D * P, lengths);
  out.h_n = new_empty(x, {D, N, P});
  out.c_n = new_empty(x, {D, N, H});
  if (keep) out.cell = new_sequence(x, layer, D * H, lengths);
  const Tensor workspace = new_empty(x, {forward_workspace(size)});

  for (int64_t d = 0; d < D; ++d) {
    const std::vector<T> bias = summed_bias<T>(layer, d);
    T* const gates = pointer<T>(out.gates) + d * 4 * H;
    // With a single step the GEMM library reads W_hh as it stands; packing it would cost more than the step.
    if (steps == 1) add_rows(gates, D * 4 * H, matmul(select(h0, 0, d), transpose(layer.weight_hh(d), 0, 1)));
    T* const c_n = pointer<T>(out.c_n) + d * N * H;
    forward<T>({.size = size,
                .rows = rows.view(),
                .reverse = d == 1,
                .weight_hh = steps == 1 ? nullptr : pointer<T>(layer.weight_hh(d)),
                .weight_hr = layer.projected ? pointer<T>(layer.weight_hr(d)) : nullptr,
                .bias = layer.biased ? bias.data() : nullptr,
                .h0 = pointer<T>(h0) + d * N * P,
                .c0 = pointer<T>(c0) + d * N * H,
                .gates = gates,
                .gates_stride = D * 4 * H,
                .keep_gates = keep,
                .y = pointer<T>(out.y) + d * P,
                .y_stride = D * P,
                .c = keep ? pointer<T>(out.cell) + d * H : c_n,
                .c_stride = keep ? D * H : H,
                .c_step = keep ? N * D * H : 0,
                .h_n = pointer<T>(out.h_n) + d * N * P,
                .c_n = c_n,
                .workspace = pointer<T>(workspace)},
               threads);
  }
  return out;
}

ForwardResult run_forward(const Tensor& x, const Tensor& h0, const Tensor& c0,
                          const std::vector<Tensor>& weights, const std::optional<Tensor>& lengths,
                          bool keep) {
  (void)Layer(x, h0, c0, weights, lengths);  // the caller's own tensors are checked before any is converted
  const ScalarType type = compute_type(x);
  const Tensor x_ = prepare(x, type), h0_ = prepare(h0, type), c0_ = prepare(c0, type);
  const std::vector<Tensor> weights_ = prepare(weights, type);
  const Layer layer(x_, h0_, c0_, weights_, lengths);
  ForwardResult out = type == ScalarType::Double ? run_forward<double>(x_, h0_, c0_, layer, lengths, keep)
                                                 : run_forward<float>(x_, h0_, c0_, layer, lengths, keep);
  out.y = restore(out.y, x);
  out.h_n = restore(out.h_n, x);
  out.c_n = restore(out.c_n, x);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> lstm_inference(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                                  const std::vector<Tensor>& weights,
                                                  const std::optional<Tensor>& lengths, bool /*allow_tf32*/) {
  ForwardResult out = run_forward(x, h0, c0, weights, lengths, false);
  return {out.y, out.h_n, out.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(const Tensor& x, const Tensor& h0,
                                                                const Tensor& c0,
                                                                const std::vector<Tensor>& weights,
                                                                const std::optional<Tensor>& lengths,
                                                                bool /*allow_tf32*/) {
  ForwardResult out = run_forward(x, h0, c0, weights, lengths, true);
  return {out.y, out.h_n, out.c_n, out.cell, out.gates};
}

// [T, N, P]: the state that each step of direction d started from.
template <class T>
Tensor hidden_before(const Layer& layer, const Tensor& y, const Tensor& h0, const Rows& rows, int64_t d) {
  const int64_t steps = layer.steps, N = layer.batch, P = layer.outputs;
  Tensor before = new_zeros(y, {steps, N, P});
  if (steps > 1) {
    Tensor later = slice(before, 0, d == 1 ? 0 : 1, steps - 1);
    copy_(later, slice(slice(y, 0, d == 1 ? 1 : 0, steps - 1), 2, d * P, P));
  }
  for (int64_t row = 0; row < N; ++row) {
    if (rows.length[row] == 0) continue;
    const int64_t first = d == 1 ? rows.length[row] - 1 : 0;
    std::copy_n(pointer<T>(h0) + (d * N + row) * P, P, pointer<T>(before) + (first * N + row) * P);
  }
  return before;
}

// [N, 4H]: the gates' gradient at each row's first step in direction d, zero for a row of no steps.
template <class T>
Tensor first_gradient(const Layer& layer, const Tensor& grad_gates, const Rows& rows, int64_t d) {
  const int64_t N = layer.batch, G = 4 * layer.hidden, stride = layer.directions * G;
  Tensor first = new_zeros(grad_gates, {N, G});
  for (int64_t row = 0; row < N; ++row) {
    if (rows.length[row] == 0) continue;
    const int64_t t = d == 1 ? rows.length[row] - 1 : 0;
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
    const Tensor transposed = transpose(slice(grad, 0, begin, count), 0, 1);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(sum.get(), sum.get(), transposed.get(),
                                                    slice(rows, 0, begin, count).get(), 1.0, 1.0));
  }
  return sum;
}

struct BackwardResult {
  Tensor grad_x, grad_h0, grad_c0;
  std::vector<Tensor> grad_weights;
};

template <class T>
BackwardResult run_backward(const Incoming& grad, const Saved& saved, const Layer& layer,
                            const std::optional<Tensor>& lengths, bool need_x, bool need_h0,
                            const std::vector<int64_t>& need_weights) {
  const int64_t steps = layer.steps, N = layer.batch, H = layer.hidden, P = layer.outputs,
                D = layer.directions;
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  const RowOrder rows(layer, lengths);
  const Sizes size{steps, N, H, P};
  const Tensor& like = saved.x;

  // What is not needed is returned empty; each a tensor of its own, as outputs of an operator must be.
  BackwardResult out{new_empty(like, {0}), new_empty(like, {0}), new_empty(like, {D, N, H}), {}};
  for (size_t i = 0; i < layer.weights.size(); ++i) out.grad_weights.push_back(new_empty(like, {0}));
  if (need_h0) out.grad_h0 = new_zeros(like, {D, N, P});
  if (grad.c_n) {
    copy_(out.grad_c0, *grad.c_n);
  } else {
    torch::stable::zero_(out.grad_c0);
  }
  const Tensor grad_gates = new_sequence(like, layer, D * 4 * H, lengths);
  const Tensor grad_gates_2d = view(grad_gates, {steps * N, D * 4 * H});
  const Tensor x_2d = view(saved.x, {steps * N, layer.input});
  const Tensor workspace = new_empty(like, {backward_workspace(size)});

  for (int64_t d = 0; d < D; ++d) {
    std::optional<Tensor> grad_p, h;
    if (layer.projected) {
      grad_p = new_sequence(like, layer, P, lengths);
      h = new_sequence(like, layer, H, lengths);
    }
    backward<T>({.size = size,
                 .rows = rows.view(),
                 .reverse = d == 1,
                 .weight_hh = steps == 1 ? nullptr : pointer<T>(layer.weight_hh(d)),
                 .weight_hr = layer.projected ? pointer<T>(layer.weight_hr(d)) : nullptr,
                 .c0 = pointer<T>(saved.c0) + d * N * H,
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
                 .workspace = pointer<T>(workspace)},
                threads);

    const Tensor of_direction = slice(grad_gates_2d, 1, d * 4 * H, 4 * H);
    if (need_h0) {
      T* const grad_h0 = pointer<T>(out.grad_h0) + d * N * P;
      add_rows(grad_h0, P, matmul(first_gradient<T>(layer, grad_gates, rows.view(), d), layer.weight_hh(d)));
      for (int64_t row = 0; grad.h_n && row < N; ++row) {
        if (rows.length[row] > 0) continue;  // a row of no steps hands its state through
        std::copy_n(pointer<T>(grad.h_n) + (d * N + row) * P, P, grad_h0 + row * P);
      }
    }
    const int64_t at = layer.first_weight(d);
    if (need_weights[at]) out.grad_weights[at] = matmul(transpose(of_direction, 0, 1), x_2d);
    if (need_weights[at + 1]) {
      const Tensor before = hidden_before<T>(layer, saved.y, saved.h0, rows.view(), d);
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
    const std::optional<Tensor>& lengths, bool /*allow_tf32*/, const Tensor& y, const Tensor& cell,
    const Tensor& gates, bool need_x, bool need_h0, const std::vector<int64_t>& need_weights) {
  check_backward(Layer(x, h0, c0, weights, lengths), {grad_y, grad_h_n, grad_c_n, grad_cell},
                 {x, h0, c0, y, cell, gates}, need_weights);
  const ScalarType type = compute_type(x);
  const Saved saved{prepare(x, type), prepare(h0, type),   prepare(c0, type),
                    prepare(y, type), prepare(cell, type), prepare(gates, type)};
  const Incoming grad{prepare(grad_y, type), prepare(grad_h_n, type), prepare(grad_c_n, type),
                      prepare(grad_cell, type)};
  const std::vector<Tensor> weights_ = prepare(weights, type);
  const Layer layer(saved.x, saved.h0, saved.c0, weights_, lengths);
  BackwardResult out = type == ScalarType::Double
                           ? run_backward<double>(grad, saved, layer, lengths, need_x, need_h0, need_weights)
                           : run_backward<float>(grad, saved, layer, lengths, need_x, need_h0, need_weights);
  for (Tensor& weight : out.grad_weights) weight = restore(weight, x);
  return {restore(out.grad_x, x), restore(out.grad_h0, x), restore(out.grad_c0, x), out.grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CPU, m) {
  m.impl("lstm_inference", TORCH_BOX(&lstm_inference));
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward));
}

}  // namespace fusedlstm::cpu
