// One layer as an operator gets it and gives it back: tensors, sizes, checks. Python gives users their errors
// (fusedlstm/modules.py); these checks keep a direct caller of the operators from reading past a tensor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "allocate.h"
#include "checks.h"
#include "sizes.h"

namespace fusedlstm {

// The arguments of a call. Weights are in the order of nn.LSTM: for each direction weight_ih [4H, I] and
// weight_hh [4H, P], then bias_ih and bias_hh [4H] if there are biases, then weight_hr [P, H] if there is a
// projection.
struct LayerInputs {
  Tensor x, h0, c0;  // [T, N, I], [D, N, P], [D, N, H]
  std::vector<Tensor> weights;
  std::optional<Tensor> lengths;  // [N] int64     steps of each sequence; absent: T for all
  std::optional<Tensor> resets;   // [T, N] bool   where a segment begins; absent: nowhere
  bool allow_tf32;                // whether a GPU may round factors of float32 products to TF32
};

// Which tensors of a forward pass are returned for a backward pass.
struct Keep {
  bool cells = false, gates = false;
};
struct ForwardResults {
  Tensor y, h_n, c_n;                  // [T, N, D*P], [D, N, P], [D, N, H]
  std::optional<Tensor> cells, gates;  // [T, N, D*H], [T, N, D*4H] compute type   as far as they are kept
};
struct RecomputedTensors {
  Tensor cells, gates;
};

// Gradients of a layer's outputs; an absent one is zero.
struct OutputGradients {
  std::optional<Tensor> y, h_n, c_n, cells;
};
struct SavedForBackward {
  Tensor y, cells, gates;  // gates: activated
};
struct NeededGradients {
  bool x, h0;
  std::vector<int64_t> weights;  // one truth value for each weight
};
struct InputGradients {
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
};

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

// float16 and bfloat16 are formats of storage: gates, cell states and sums are float32.
inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Dense and of the given type.
inline Tensor prepare(const Tensor& tensor, ScalarType type) {
  if (tensor.scalar_type() == type && tensor.is_contiguous()) return tensor;  // saves a call into torch
  return dense(cast(tensor, type));
}
inline std::optional<Tensor> prepare(const std::optional<Tensor>& tensor, ScalarType type) {
  return tensor ? std::optional(prepare(*tensor, type)) : std::nullopt;
}
inline OutputGradients prepare(const OutputGradients& grads, ScalarType io, ScalarType compute) {
  return {prepare(grads.y, io), prepare(grads.h_n, io), prepare(grads.c_n, io),
          prepare(grads.cells, compute)};
}
inline SavedForBackward prepare(const SavedForBackward& saved, ScalarType io, ScalarType compute) {
  return {prepare(saved.y, io), prepare(saved.cells, compute), prepare(saved.gates, compute)};
}

inline Sizes sizes_of(const LayerInputs& in) {
  return {in.x.size(0), in.x.size(1), in.x.size(2), in.c0.size(2), in.h0.size(2), in.c0.size(0)};
}

// A layer's sizes and its tensors, dense: x and the states of one type, the weights of one of their own.
struct Layer {
  Sizes size;
  bool biased, projected;
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
  std::optional<Tensor> lengths, resets;

  // `in` has been checked (check_inputs).
  Layer(const LayerInputs& in, ScalarType type, ScalarType weight_type)
      : size(sizes_of(in)),
        biased(static_cast<int64_t>(in.weights.size()) / size.directions >= 4),
        projected(size.outputs != size.hidden),
        x(prepare(in.x, type)),
        h0(prepare(in.h0, type)),
        c0(prepare(in.c0, type)),
        lengths(prepare(in.lengths, ScalarType::Long)),
        resets(prepare(in.resets, ScalarType::Bool)) {
    for (const Tensor& weight : in.weights) weights.push_back(prepare(weight, weight_type));
  }

  // Positions in `weights` of the tensors of direction d; -1 for what the layer does not have.
  struct Positions {
    int64_t ih, hh, bias_ih, bias_hh, hr;
  };
  Positions positions(int64_t d) const {
    const int64_t count = static_cast<int64_t>(weights.size()) / size.directions, first = d * count;
    return {first, first + 1, biased ? first + 2 : -1, biased ? first + 3 : -1,
            projected ? first + count - 1 : -1};
  }
  const Tensor& weight_ih(int64_t d) const { return weights[positions(d).ih]; }
  const Tensor& weight_hh(int64_t d) const { return weights[positions(d).hh]; }
  const Tensor& bias_ih(int64_t d) const { return weights[positions(d).bias_ih]; }
  const Tensor& bias_hh(int64_t d) const { return weights[positions(d).bias_hh]; }
  const Tensor& weight_hr(int64_t d) const { return weights[positions(d).hr]; }
};

// All numbers of elements are products of these sizes. 2^57 leaves room for bytes and for what kernels pad;
// no machine has as much, but expanded tensors may claim it.
inline void check_size(const Sizes& size) {
  // A double does not wrap. A size of 0 must not hide another: there are tensors without that dimension.
  const auto at_least_1 = [](int64_t size) { return static_cast<double>(std::max<int64_t>(size, 1)); };
  const double rows = at_least_1(size.steps) * at_least_1(size.batch);
  const double units = 4 * at_least_1(size.directions) * at_least_1(std::max(size.hidden, size.outputs));
  const double inputs = at_least_1(size.input);
  if (std::max({rows * units, rows * inputs, units * units, units * inputs}) >= 0x1p57)
    fail("sizes must give tensors of less than 2^57 elements, got ", size.steps, " steps, ", size.batch,
         " sequences, ", size.input, " features, ", size.hidden, " hidden units and ", size.outputs,
         " outputs");
}

inline void check_weights(const LayerInputs& in, const Sizes& size, ScalarType type, const Device& device) {
  const auto count = static_cast<int64_t>(in.weights.size()), each = count / size.directions;
  const bool projected = size.outputs != size.hidden, biased = each >= 4;
  if (each * size.directions != count || each != 2 + 2 * biased + projected)
    fail("weights must hold ", projected ? "3 or 5" : "2 or 4", " tensors for each of ", size.directions,
         " directions, got ", count);
  for (int64_t d = 0; d < size.directions; ++d) {
    const Tensor* const given = in.weights.data() + d * each;
    check_tensor({"weight_ih", d}, given[0], {4 * size.hidden, size.input}, type, device);
    check_tensor({"weight_hh", d}, given[1], {4 * size.hidden, size.outputs}, type, device);
    if (projected) check_tensor({"weight_hr", d}, given[each - 1], {size.outputs, size.hidden}, type, device);
    if (!biased) continue;
    check_tensor({"bias_ih", d}, given[2], {4 * size.hidden}, type, device);
    check_tensor({"bias_hh", d}, given[3], {4 * size.hidden}, type, device);
  }
}

inline Sizes check_inputs(const LayerInputs& in) {
  check_rank("input", in.x, "[steps, batch, input_size]");
  check_rank("c0", in.c0, "[directions, batch, hidden_size]");
  check_rank("h0", in.h0, "[directions, batch, outputs]");
  const ScalarType type = in.x.scalar_type();
  const Device device = in.x.device();
  if (type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::BFloat16 &&
      type != ScalarType::Half)
    fail("input must be float32, float64, bfloat16 or float16, got ", TypeText{type});
  const Sizes size = sizes_of(in);
  if (size.directions != 1 && size.directions != 2)
    fail("c0 must have 1 or 2 directions, got ", size.directions);
  check_size(size);
  check_memory("input", in.x, in.x.sizes(), type);
  check_tensor("h0", in.h0, {size.directions, size.batch, size.outputs}, type, device);
  check_tensor("c0", in.c0, {size.directions, size.batch, size.hidden}, type, device);
  check_weights(in, size, type, device);
  if (in.lengths) check_tensor("lengths", *in.lengths, {size.batch}, ScalarType::Long, device);
  if (in.resets) check_tensor("resets", *in.resets, {size.steps, size.batch}, ScalarType::Bool, device);
  return size;
}

inline void check_outputs(const Sizes& size, const Tensor& y, const Tensor& x) {
  check_tensor("y", y, {size.steps, size.batch, size.directions * size.outputs}, x.scalar_type(), x.device());
}

inline void check_backward(const LayerInputs& in, const OutputGradients& grads,
                           const SavedForBackward& saved) {
  const Sizes size = check_inputs(in);
  const auto& [T, N, I, H, P, D] = size;
  const ScalarType type = in.x.scalar_type(), compute = compute_type(in.x);
  const Device device = in.x.device();
  check_outputs(size, saved.y, in.x);
  check_tensor("cells", saved.cells, {T, N, D * H}, compute, device);
  check_tensor("gates", saved.gates, {T, N, D * 4 * H}, compute, device);
  if (grads.y) check_tensor("grad_y", *grads.y, {T, N, D * P}, type, device);
  if (grads.h_n) check_tensor("grad_h_n", *grads.h_n, {D, N, P}, type, device);
  if (grads.c_n) check_tensor("grad_c_n", *grads.c_n, {D, N, H}, type, device);
  if (grads.cells) check_tensor("grad_cells", *grads.cells, {T, N, D * H}, compute, device);
}

}  // namespace fusedlstm
