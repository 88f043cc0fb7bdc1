// One layer on the CPU: tensors in, tensors out, and the arguments of the passes.
#include <algorithm>
#include <array>
#include <numeric>

#include "../operators.h"
#include "args.h"
#include "caches.h"
#include "team.h"
#include "workspace.h"

namespace fusedlstm::cpu {
namespace {

// Uninitialized; on huge pages where it is large.
Tensor new_large(const Tensor& like, Shape sizes, std::optional<ScalarType> type = {}) {
  Tensor tensor = allocate(like, sizes, type);
  prefer_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

// Which rows of the batch take part in which step.
struct Schedule {
  std::vector<int64_t> length, order, active, offset;
  const bool* resets;

  explicit Schedule(const Layer& layer)
      : length(new_vector(layer.size.batch, layer.size.steps)),
        order(new_vector<int64_t>(layer.size.batch)),
        active(new_vector(layer.size.steps, layer.size.batch)),
        offset(new_vector<int64_t>(layer.size.steps + 1)),
        resets(pointer<bool>(layer.resets)) {
    std::iota(order.begin(), order.end(), 0);
    for (int64_t t = 0; t <= layer.size.steps; ++t) offset[t] = t * layer.size.batch;
    if (layer.batch_sizes) {
      std::copy_n(pointer<int64_t>(layer.batch_sizes), layer.size.steps, active.begin());
      PackedSteps steps(layer);
      offset = std::move(steps.offsets), length = std::move(steps.lengths);
    }
    if (!layer.lengths) return;
    const int64_t T = layer.size.steps, N = layer.size.batch;
    std::copy_n(pointer<int64_t>(layer.lengths), N, length.begin());
    for (int64_t row = 0; row < N; ++row)
      if (length[row] < 0 || length[row] > T)
        fail("lengths[", row, "] must be in 0..", T, " (the steps of input), got ", length[row]);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
    for (int64_t t = 0, count = N; t < T; ++t) {
      while (count > 0 && length[order[count - 1]] <= t) --count;
      active[t] = count;
    }
  }

  Rows rows() const { return {length.data(), order.data(), active.data(), offset.data(), resets}; }
};

// Of x, h, y and what is kept (StateType): bfloat16 as it is stored, and float16 widened.
ScalarType state_type(const Tensor& x) {
  return dtype_of(x) == ScalarType::Half ? ScalarType::Float : dtype_of(x);
}

// Calls function(T{}, W{}) with the type of the arithmetic and that of the weights.
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

// A call: the layer with its tensors in the types of the arithmetic, which rows run when, and the threads.
struct LayerCall {
  Layer layer;
  Schedule schedule;
  ThreadPlan plan;

  // The forward pass reads 16-bit weights as they are stored.
  LayerCall(const LayerInputs& in, Pass pass)
      : layer(in, state_type(in.x), pass == Pass::forward ? dtype_of(in.x) : state_type(in.x)),
        schedule(layer),
        plan(make_thread_plan(
            layer.size, team_size(torch::stable::get_num_threads(), multiply_adds(layer.size)), pass,
            cached_weight_bytes(),
            with_types(dtype_of(in.x), []<class T, class W>(T, W) { return packed_from<T, W>(); }))) {}

  // A sequence tensor of state_type; the passes write the steps of each row, and what lies past its length
  // reads as zero.
  Tensor new_sequence(int64_t columns) const {
    Tensor sequence = new_large(layer.x, layer.sequence(columns));
    if (layer.lengths) torch::stable::zero_(sequence);
    return sequence;
  }

  std::vector<Range> time_blocks(bool falling) const {
    return divide_steps(schedule.offset.data(), layer.size.steps, plan.block_entries(layer.size), falling);
  }
};

// For each step where its entries begin among those of its time block.
std::vector<int64_t> offsets_in_blocks(const std::vector<int64_t>& offset, const std::vector<Range>& blocks) {
  std::vector<int64_t> offsets = offset;
  for (const Range& block : blocks)
    for (int64_t t = block.begin; t < block.end; ++t) offsets[t] -= offset[block.begin];
  return offsets;
}

template <class T, class S>
void widen_into(const S* from, int64_t count, T* to) {
  std::transform(from, from + count, to, [](S value) { return widen(value); });
}

// [D, 4H]: bias_ih + bias_hh.
template <class T>
std::vector<T> summed_biases(const Layer& layer) {
  if (!layer.biased) return {};
  const int64_t G = 4 * layer.size.hidden;
  std::vector<T> bias = new_vector<T>(layer.size.directions * G);
  for (int64_t d = 0; d < layer.size.directions; ++d) {
    const ScalarType type = compute_type(layer.x);
    const Tensor ih = prepare(layer.bias_ih(d), type);
    const Tensor hh = prepare(layer.bias_hh(d), type);
    const T *const of_ih = pointer<T>(ih), *const of_hh = pointer<T>(hh);
    for (int64_t j = 0; j < G; ++j) bias[d * G + j] = of_ih[j] + of_hh[j];
  }
  return bias;
}

// Runs the recurrence. With `recompute`, out.y is given and only cells and gates are written.
template <class T, class W>
void run_forward(const LayerCall& call, const ForwardResults& out, bool recompute) {
  const Layer& layer = call.layer;
  const auto& [steps, N, I, H, P, D, entries] = layer.size;
  using S = StateType<T, W>;
  const int64_t G = 4 * H;
  const std::vector<T> biases = summed_biases<T>(layer);
  const std::vector<T> zeros = new_vector<T>(call.schedule.resets ? std::max(H, P) : 0);
  const bool packs = call.plan.packs, in_step = call.plan.time_block == 1;
  const int64_t ih_size = packs ? packed_weights(I, H) : 0, hh_size = packs ? packed_weights(P, H) : 0,
                sums_size = in_step ? 0 : call.plan.block_entries(layer.size) * G,
                h_size = layer.projected ? N * H : 0, c_size = recompute ? N * H : 0;
  const int64_t size_of_each =
      (ih_size + hh_size + sums_size + h_size + c_size + 15) / 16 * 16;  // whole cache lines
  const Workspace<T> workspace(D * size_of_each + forward_workspace<T, W>(layer.size, call.plan));
  std::array<std::vector<Range>, 2> time_blocks;
  std::array<std::vector<int64_t>, 2> offsets_in_block;
  std::array<ForwardArgs<T, W>, 2> directions;
  for (int64_t d = 0; d < D; ++d) {
    time_blocks[d] = call.time_blocks(d == 1);
    if (sums_size > 0) offsets_in_block[d] = offsets_in_blocks(call.schedule.offset, time_blocks[d]);
    T* const packed_ih = workspace.data() + d * size_of_each;
    T *const packed_hh = packed_ih + ih_size, *const sums = packed_hh + hh_size, *const h = sums + sums_size;
    T* const c = recompute ? h + h_size : pointer<T>(out.c_n) + d * N * H;
    widen_into(pointer<S>(layer.c0) + d * N * H, N * H, c);
    directions[d] = {.size = layer.size,
                     .rows = call.schedule.rows(),
                     .reverse = d == 1,
                     .time_blocks = time_blocks[d],
                     .weight_ih = pointer<W>(layer.weight_ih(d)),
                     .weight_hh = pointer<W>(layer.weight_hh(d)),
                     .weight_hr = layer.projected ? pointer<W>(layer.weight_hr(d)) : nullptr,
                     .packed_ih = packs ? packed_ih : nullptr,
                     .packed_hh = packs ? packed_hh : nullptr,
                     .bias = layer.biased ? biases.data() + d * G : nullptr,
                     .x = pointer<S>(layer.x),
                     .h0 = pointer<S>(layer.h0) + d * N * P,
                     .zeros = zeros.data(),
                     .sums = sums_size > 0 ? sums : nullptr,
                     .sums_offset = sums_size > 0 ? offsets_in_block[d].data() : nullptr,
                     .input_in_step = in_step,
                     .recompute = recompute,
                     .y = pointer<S>(out.y) + d * P,
                     .y_stride = D * P,
                     .gates = out.gates ? pointer<S>(out.gates) + d * G : nullptr,
                     .gates_stride = D * G,
                     .cells = out.cells ? pointer<S>(out.cells) + d * H : nullptr,
                     .cells_stride = D * H,
                     .h = layer.projected ? h : nullptr,
                     .c = c,
                     .h_n = recompute ? nullptr : pointer<S>(out.h_n) + d * N * P};
  }
  forward(directions.data(), D, workspace.data() + D * size_of_each, call.plan);
}

void run_forward(const LayerCall& call, const ForwardResults& out, bool recompute) {
  with_types(dtype_of(call.layer.weights[0]),
             [&]<class T, class W>(T, W) { run_forward<T, W>(call, out, recompute); });
}

template <class T, class W>
InputGradients run_backward(const LayerCall& call, const OutputGradients& grads,
                            const SavedForBackward& saved, const NeededGradients& needed) {
  const Layer& layer = call.layer;
  const auto& [steps, N, I, H, P, D, S] = layer.size;

  // Gradients of weight matrices are of the type of x, all others of the compute type. What is not needed is
  // returned empty; each a tensor of its own, as outputs of an operator must be.
  const ScalarType compute = compute_type(layer.x);
  const auto gradient_of = [&](const Tensor& tensor, bool need, ScalarType type) {
    if (!need) return allocate(tensor, {0}, type);
    return layer.size.steps == 0 ? allocate_zeros(tensor, tensor.sizes(), type)
                                 : new_large(tensor, tensor.sizes(), type);
  };
  InputGradients out{gradient_of(layer.x, needed.x, compute),
                     gradient_of(layer.h0, needed.h0, compute),
                     allocate(layer.c0, layer.c0.sizes(), compute),
                     {}};
  // The pass begins with the gradient of c_n. torch's clone and new_zeros take a microsecond longer.
  if (grads.c_n)
    widen_into(pointer<W>(grads.c_n), D * N * H, pointer<T>(out.c0));
  else
    std::fill_n(pointer<T>(out.c0), D * N * H, T(0));
  out.weights.reserve(layer.weights.size());
  for (size_t i = 0; i < layer.weights.size(); ++i)
    out.weights.push_back(gradient_of(layer.weights[i], needed.weights[i],
                                      layer.weights[i].dim() == 1 ? compute : dtype_of(layer.weights[i])));

  const std::vector<T> zeros = new_vector<T>(std::max(H, P));
  const Workspace<T> workspace(backward_workspace<T, W>(layer.size, call.plan, layer.projected));
  for (int64_t d = 0; d < D; ++d) {
    const Layer::Positions at = layer.positions(d);
    const std::vector<Range> time_blocks = call.time_blocks(d == 0);
    const auto weight_gradient = [&](int64_t i) {
      return i >= 0 && needed.weights[i] ? pointer<W>(out.weights[i]) : nullptr;
    };
    const auto bias_gradient = [&](int64_t i) {
      return i >= 0 && needed.weights[i] ? pointer<T>(out.weights[i]) : nullptr;
    };
    T *const grad_bias_ih = bias_gradient(at.bias_ih), *const grad_bias_hh = bias_gradient(at.bias_hh);
    backward<T, W>({.size = layer.size,
                    .rows = call.schedule.rows(),
                    .reverse = d == 1,
                    .time_blocks = time_blocks,
                    .weight_ih = pointer<W>(layer.weight_ih(d)),
                    .weight_hh = pointer<W>(layer.weight_hh(d)),
                    .weight_hr = layer.projected ? pointer<W>(layer.weight_hr(d)) : nullptr,
                    .x = pointer<W>(layer.x),
                    .h0 = pointer<W>(layer.h0) + d * N * P,
                    .c0 = pointer<W>(layer.c0) + d * N * H,
                    .zeros = zeros.data(),
                    .y = pointer<W>(saved.y) + d * P,
                    .gates = pointer<W>(saved.gates) + d * 4 * H,
                    .cells = pointer<W>(saved.cells) + d * H,
                    .grad_y = grads.y ? pointer<W>(grads.y) + d * P : nullptr,
                    .grad_cells = grads.cells ? pointer<W>(grads.cells) + d * H : nullptr,
                    .grad_h_n = grads.h_n ? pointer<W>(grads.h_n) + d * N * P : nullptr,
                    .gates_stride = D * 4 * H,
                    .y_stride = D * P,
                    .cells_stride = D * H,
                    .grad_c0 = pointer<T>(out.c0) + d * N * H,
                    .grad_x = needed.x ? pointer<T>(out.x) : nullptr,
                    .grad_h0 = needed.h0 ? pointer<T>(out.h0) + d * N * P : nullptr,
                    .grad_weight_ih = weight_gradient(at.ih),
                    .grad_weight_hh = weight_gradient(at.hh),
                    .grad_weight_hr = weight_gradient(at.hr),
                    .grad_bias = grad_bias_ih ? grad_bias_ih : grad_bias_hh,
                    .workspace = workspace.data()},
                   call.plan);
    // Both biases have the same gradient: computed for one, copied to the other.
    if (grad_bias_ih && grad_bias_hh) std::copy_n(grad_bias_ih, 4 * H, grad_bias_hh);
    // h0 is the last state of a row without steps, and no state of a row that begins with a reset.
    for (int64_t n = 0; needed.h0 && n < N; ++n) {
      const bool stays = call.schedule.length[n] == 0,
                 cut = !stays && d == 0 && call.schedule.resets && call.schedule.resets[n];
      T* const grad_h0 = pointer<T>(out.h0) + (d * N + n) * P;
      if (stays && grads.h_n)
        widen_into(pointer<W>(grads.h_n) + (d * N + n) * P, P, grad_h0);
      else if (stays || cut)
        std::fill_n(grad_h0, P, T(0));
    }
  }
  return out;
}

struct Backend {
  static ScalarType kept_type(const Tensor& x) { return state_type(x); }

  static ForwardResults forward(const LayerInputs& in, const Keep& keep) {
    const LayerCall call(in, Pass::forward);
    const auto& [T, N, I, H, P, D, S] = call.layer.size;
    ForwardResults out{.y = call.new_sequence(D * P),
                       .h_n = allocate(call.layer.x, {D, N, P}),
                       .c_n = allocate(call.layer.c0, {D, N, H}, compute_type(in.x)),
                       .cells = {},
                       .gates = {}};
    if (keep.cells) out.cells = call.new_sequence(D * H);
    if (keep.gates) out.gates = call.new_sequence(D * 4 * H);
    run_forward(call, out, false);
    for (Tensor* const result : {&out.y, &out.h_n, &out.c_n}) *result = cast(*result, dtype_of(in.x));
    return out;
  }

  static RecomputedTensors recompute(const LayerInputs& in, const Tensor& y) {
    const LayerCall call(in, Pass::forward);
    const int64_t D = call.layer.size.directions, H = call.layer.size.hidden;
    const RecomputedTensors out{call.new_sequence(D * H), call.new_sequence(D * 4 * H)};
    run_forward(call, {prepare(y, state_type(in.x)), {}, {}, out.cells, out.gates}, true);
    return out;
  }

  static InputGradients backward(const LayerInputs& in, const OutputGradients& grads,
                                 const SavedForBackward& saved, const NeededGradients& needed) {
    const LayerCall call(in, Pass::backward);
    const ScalarType type = state_type(in.x);
    const auto run = type == ScalarType::Double     ? run_backward<double, double>
                     : type == ScalarType::BFloat16 ? run_backward<float, BFloat16>
                                                    : run_backward<float, float>;
    InputGradients out = run(call, prepare(grads, type), prepare(saved, type), needed);
    for (Tensor* const gradient : {&out.x, &out.h0, &out.c0}) *gradient = cast(*gradient, dtype_of(in.x));
    for (Tensor& weight : out.weights) weight = cast(weight, dtype_of(in.x));
    return out;
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fusedlstm, CPU, m) {
  register_operators<Backend>(m);
}

}  // namespace fusedlstm::cpu
