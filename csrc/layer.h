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
//
// A sequence tensor is [T, N, columns]. Of a packed batch it is [S, columns]: the entries of one step after
// those of the step before it, in each step of the sequences that are longer, which come first in the batch.
struct LayerInputs {
  Tensor x, h0, c0;  // [T, N, I] or [S, I], [D, N, P], [D, N, H]
  std::vector<Tensor> weights;
  std::optional<Tensor> lengths;      // [N] int64     steps of each sequence; absent: T for all
  std::optional<Tensor> resets;       // [T, N] bool   where a segment begins; absent: nowhere
  std::optional<Tensor> batch_sizes;  // [T] int64, on the CPU   entries of each step; absent: a padded batch
  bool allow_tf32;                    // whether a GPU may round factors of float32 products to TF32
};

// Which tensors of a forward pass are returned for a backward pass.
struct Keep {
  bool cells = false, gates = false;
};
struct ForwardResults {
  Tensor y, h_n, c_n;                  // sequence of D*P columns, [D, N, P], [D, N, H]
  std::optional<Tensor> cells, gates;  // sequences of D*H and D*4H, compute type   as far as they are kept
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
  const bool packed = in.batch_sizes.has_value();
  const int64_t T = packed ? in.batch_sizes->size(0) : in.x.size(0),
                N = packed ? in.c0.size(1) : in.x.size(1);
  return {.steps = T,
          .batch = N,
          .input = in.x.size(packed ? 1 : 2),
          .hidden = in.c0.size(2),
          .outputs = in.h0.size(2),
          .directions = in.c0.size(0),
          .entries = packed ? in.x.size(0) : T * N};
}

// A layer's sizes and its tensors, dense: x and the states of one type, the weights of one of their own.
struct Layer {
  Sizes size;
  bool biased, projected;
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
  std::optional<Tensor> lengths, resets, batch_sizes;

  // `in` has been checked (check_inputs).
  Layer(const LayerInputs& in, ScalarType type, ScalarType weight_type)
      : size(sizes_of(in)),
        biased(static_cast<int64_t>(in.weights.size()) / size.directions >= 4),
        projected(size.outputs != size.hidden),
        x(prepare(in.x, type)),
        h0(prepare(in.h0, type)),
        c0(prepare(in.c0, type)),
        lengths(prepare(in.lengths, ScalarType::Long)),
        resets(prepare(in.resets, ScalarType::Bool)),
        batch_sizes(prepare(in.batch_sizes, ScalarType::Long)) {
    for (const Tensor& weight : in.weights) weights.push_back(prepare(weight, weight_type));
  }

  // Shape of a sequence tensor.
  std::vector<int64_t> sequence(int64_t columns) const {
    if (batch_sizes) return {size.entries, columns};
    return {size.steps, size.batch, columns};
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

inline void check_sequence(const char* name, const Tensor& tensor, const LayerInputs& in, int64_t columns) {
  const Sizes size = sizes_of(in);
  if (in.batch_sizes) return check_shape(name, tensor, {size.entries, columns});
  check_shape(name, tensor, {size.steps, size.batch, columns});
}

// The sequences of a packed batch come in order of falling length, so that no step has more than the one
// before.
inline void check_batch_sizes(const LayerInputs& in, const Sizes& size) {
  STD_TORCH_CHECK(!in.lengths && !in.resets, "lengths and resets must be None with batch_sizes");
  const Tensor batch_sizes = prepare(*in.batch_sizes, ScalarType::Long);
  int64_t entries = 0;
  for (int64_t t = 0, most = size.batch; t < size.steps; ++t) {
    const int64_t count = pointer<int64_t>(batch_sizes)[t];
    STD_TORCH_CHECK(count >= 0 && count <= most, "batch_sizes[", t, "] must be in 0..", most, ", ",
                    t > 0 ? "the entries of the step before" : "the batch of h0", ", got ", count);
    entries += count;
    most = count;
  }
  STD_TORCH_CHECK(entries == size.entries, "input must have ", entries,
                  " entries, the sum of batch_sizes, got ", size.entries);
}

inline Sizes check_inputs(const LayerInputs& in) {
  if (in.batch_sizes) {
    STD_TORCH_CHECK(in.batch_sizes->dim() == 1, "batch_sizes must be [steps], got ", shape(*in.batch_sizes));
    STD_TORCH_CHECK(in.batch_sizes->scalar_type() == ScalarType::Long, "batch_sizes must be int64");
    STD_TORCH_CHECK(in.batch_sizes->is_cpu(), "batch_sizes must be on the CPU");
    STD_TORCH_CHECK(in.x.dim() == 2, "input must be [entries, input_size] with batch_sizes, got ",
                    shape(in.x));
  } else {
    STD_TORCH_CHECK(in.x.dim() == 3, "input must be [steps, batch, input_size], got ", shape(in.x));
  }
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
  if (in.batch_sizes) check_batch_sizes(in, size);
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

// `in` has been checked.
inline void check_outputs(const LayerInputs& in, const Tensor& y) {
  check_sequence("y", y, in, in.h0.size(0) * in.h0.size(2));
}

inline void check_backward(const LayerInputs& in, const OutputGradients& grads,
                           const SavedForBackward& saved) {
  const auto& [T, N, I, H, P, D, S] = sizes_of(in);
  check_outputs(in, saved.y);
  check_sequence("cells", saved.cells, in, D * H);
  check_sequence("gates", saved.gates, in, D * 4 * H);
  if (grads.y) check_sequence("grad_y", *grads.y, in, D * P);
  if (grads.h_n) check_shape("grad_h_n", *grads.h_n, {D, N, P});
  if (grads.c_n) check_shape("grad_c_n", *grads.c_n, {D, N, H});
  if (grads.cells) check_sequence("grad_cells", *grads.cells, in, D * H);
}

// Of a packed batch: where the entries of each step begin, S in the end, and the steps of each sequence.
struct PackedSteps {
  std::vector<int64_t> offsets, lengths;  // [T + 1], [N]

  explicit PackedSteps(const Layer& layer) : offsets(layer.size.steps + 1), lengths(layer.size.batch) {
    const int64_t* const batch_sizes = pointer<int64_t>(layer.batch_sizes);
    int64_t active = layer.size.batch;  // sequences that are longer than t
    for (int64_t t = 0; t < layer.size.steps; ++t) {
      offsets[t + 1] = offsets[t] + batch_sizes[t];
      while (active > batch_sizes[t]) lengths[--active] = t;
    }
    std::fill_n(lengths.begin(), active, layer.size.steps);
  }
};

}  // namespace fusedlstm
