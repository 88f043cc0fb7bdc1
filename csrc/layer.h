// One layer as an operator gets it and gives it back: tensors, sizes, checks. Python gives users their errors
// (fusedlstm/modules.py); these checks keep a direct caller of the operators from reading past a tensor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "sizes.h"
#include "stable.h"

namespace fusedlstm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

// Uninitialized, dense, of the given type and on the device of `like`. torch::stable::new_empty finds its
// operator by name, which takes a microsecond longer.
inline Tensor new_tensor(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle tensor = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), static_cast<int32_t>(type), device, index,
                                                  &tensor));
  return Tensor(tensor);
}

// Dense and of the given type.
inline Tensor prepare(const Tensor& tensor, ScalarType type) {
  if (tensor.scalar_type() == type && tensor.is_contiguous()) return tensor;  // saves a call into torch
  return torch::stable::contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
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

inline std::string shape(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

// Runs for every tensor of every call, so the text is made only for a tensor that fails.
inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  const auto sizes = tensor.sizes();
  if (std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) return;
  std::string wanted;
  for (const int64_t size : expected) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(false, name, " must be [", wanted, "], got ", shape(tensor));
}

inline void check_like(const char* name, const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name, " must have the dtype of input");
  STD_TORCH_CHECK(tensor.device() == input.device(), name, " must be on the device of input");
}

inline void check_weights(const LayerInputs& in, const Sizes& size) {
  const auto count = static_cast<int64_t>(in.weights.size()), each = count / size.directions;
  const bool projected = size.outputs != size.hidden, biased = each >= 4;
  STD_TORCH_CHECK(each * size.directions == count && each == 2 + 2 * biased + projected, "weights must hold ",
                  projected ? "3 or 5" : "2 or 4", " tensors for each of ", size.directions,
                  " directions, got ", count);
  for (int64_t d = 0; d < size.directions; ++d) {
    const Tensor* const given = in.weights.data() + d * each;
    check_shape("weight_ih", given[0], {4 * size.hidden, size.input});
    check_shape("weight_hh", given[1], {4 * size.hidden, size.outputs});
    if (projected) check_shape("weight_hr", given[each - 1], {size.outputs, size.hidden});
    if (!biased) continue;
    check_shape("bias_ih", given[2], {4 * size.hidden});
    check_shape("bias_hh", given[3], {4 * size.hidden});
  }
  for (const Tensor& weight : in.weights) check_like("weights", weight, in.x);
}

inline Sizes check_inputs(const LayerInputs& in) {
  STD_TORCH_CHECK(in.x.dim() == 3, "input must be [steps, batch, input_size], got ", shape(in.x));
  STD_TORCH_CHECK(in.c0.dim() == 3, "c0 must be [directions, batch, hidden_size], got ", shape(in.c0));
  STD_TORCH_CHECK(in.h0.dim() == 3, "h0 must be [directions, batch, outputs], got ", shape(in.h0));
  const ScalarType type = in.x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                      type == ScalarType::Half,
                  "input must be float32, float64, bfloat16 or float16");
  const Sizes size = sizes_of(in);
  STD_TORCH_CHECK(size.directions == 1 || size.directions == 2, "c0 must have 1 or 2 directions, got ",
                  size.directions);
  check_shape("h0", in.h0, {size.directions, size.batch, size.outputs});
  check_shape("c0", in.c0, {size.directions, size.batch, size.hidden});
  check_like("h0", in.h0, in.x);
  check_like("c0", in.c0, in.x);
  check_weights(in, size);
  if (in.lengths) {
    check_shape("lengths", *in.lengths, {size.batch});
    STD_TORCH_CHECK(in.lengths->scalar_type() == ScalarType::Long, "lengths must be int64");
    STD_TORCH_CHECK(in.lengths->device() == in.x.device(), "lengths must be on the device of input");
  }
  if (in.resets) {
    check_shape("resets", *in.resets, {size.steps, size.batch});
    STD_TORCH_CHECK(in.resets->scalar_type() == ScalarType::Bool, "resets must be bool");
    STD_TORCH_CHECK(in.resets->device() == in.x.device(), "resets must be on the device of input");
  }
  return size;
}

inline void check_outputs(const Sizes& size, const Tensor& y) {
  check_shape("y", y, {size.steps, size.batch, size.directions * size.outputs});
}

inline void check_backward(const Sizes& size, const OutputGradients& grads, const SavedForBackward& saved) {
  const auto& [T, N, I, H, P, D] = size;
  check_outputs(size, saved.y);
  check_shape("cells", saved.cells, {T, N, D * H});
  check_shape("gates", saved.gates, {T, N, D * 4 * H});
  if (grads.y) check_shape("grad_y", *grads.y, {T, N, D * P});
  if (grads.h_n) check_shape("grad_h_n", *grads.h_n, {D, N, P});
  if (grads.c_n) check_shape("grad_c_n", *grads.c_n, {D, N, H});
  if (grads.cells) check_shape("grad_cells", *grads.cells, {T, N, D * H});
}

}  // namespace fusedlstm
