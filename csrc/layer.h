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

// References to the arguments of a call. Weights are in the order of nn.LSTM: for each direction
// weight_ih [4H, I] and weight_hh [4H, P], then bias_ih and bias_hh [4H] if there are biases, then weight_hr
// [P, H] if there is a projection.
//
// A sequence tensor is [T, N, columns]. Of a packed batch it is [S, columns]: the entries of one step after
// those of the step before it, in each step of the sequences that are longer, which come first in the batch.
struct LayerInputs {
  const Tensor &x, &h0, &c0;  // [T, N, I] or [S, I], [D, N, P], [D, N, H]
  const std::vector<Tensor>& weights;
  const std::optional<Tensor>& lengths;      // [N] int64     steps of each sequence; absent: T for all
  const std::optional<Tensor>& resets;       // [T, N] bool   where a segment begins; absent: nowhere
  const std::optional<Tensor>& batch_sizes;  // [T] int64, on the CPU   of each step; absent: a padded batch
  bool allow_tf32;                           // whether a GPU may round factors of float32 products to TF32
};

// Which tensors of a forward pass are returned for a backward pass.
struct Keep {
  bool cells = false, gates = false;
};
struct ForwardResults {
  Tensor y, h_n, c_n;                  // sequence of D*P columns, [D, N, P], [D, N, H]
  std::optional<Tensor> cells, gates;  // sequences of D*H and D*4H, as far as they are kept
};
struct RecomputedTensors {
  Tensor cells, gates;
};

// Gradients of a layer's outputs; an absent one is zero.
struct OutputGradients {
  std::optional<Tensor> y, h_n, c_n, cells;
};
struct SavedForBackward {
  Tensor y, cells, gates;
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
  return dtype_of(x) == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Dense and of the given type.
inline Tensor prepare(const Tensor& tensor, ScalarType type) {
  if (dtype_of(tensor) == type && tensor.is_contiguous()) return tensor;  // saves a call into torch
  return dense(cast(tensor, type));
}
inline std::optional<Tensor> prepare(const std::optional<Tensor>& tensor, ScalarType type) {
  return tensor ? std::optional(prepare(*tensor, type)) : std::nullopt;
}
inline OutputGradients prepare(const OutputGradients& grads, ScalarType type) {
  return {prepare(grads.y, type), prepare(grads.h_n, type), prepare(grads.c_n, type),
          prepare(grads.cells, type)};
}
inline SavedForBackward prepare(const SavedForBackward& saved, ScalarType type) {
  return {prepare(saved.y, type), prepare(saved.cells, type), prepare(saved.gates, type)};
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
          .entries = packed ? in.x.size(0)
                            : static_cast<int64_t>(static_cast<uint64_t>(T) * static_cast<uint64_t>(N))};
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
    weights.reserve(in.weights.size());
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

// All numbers of elements are products of these sizes. 2^57 leaves room for bytes and for what kernels pad;
// no machine has as much, but expanded tensors may claim it.
inline void check_size(const Sizes& size, bool packed) {
  // A double does not wrap. A size of 0 must not hide another: there are tensors without that dimension.
  const auto at_least_1 = [](int64_t size) { return static_cast<double>(std::max<int64_t>(size, 1)); };
  const double steps = at_least_1(size.steps), batch = at_least_1(size.batch);
  const double rows = packed ? std::max({at_least_1(size.entries), steps, batch}) : steps * batch;
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

// The steps of a packed batch, whose sequences come in order of falling length: no step has more of them than
// the one before.
inline void check_batch_sizes(const LayerInputs& in, const Sizes& size) {
  if (in.lengths || in.resets) fail("lengths and resets must be None with batch_sizes");
  const Tensor batch_sizes = prepare(*in.batch_sizes, ScalarType::Long);
  int64_t entries = 0;
  for (int64_t t = 0, most = size.batch; t < size.steps; ++t) {
    const int64_t count = pointer<int64_t>(batch_sizes)[t];
    if (count < 0 || count > most)
      fail("batch_sizes[", t, "] must be in 0..", most, ", ",
           t > 0 ? "the entries of the step before" : "the batch of h0", ", got ", count);
    entries += count;
    most = count;
  }
  if (entries != size.entries)
    fail("input must have ", entries, " entries, the sum of batch_sizes, got ", size.entries);
}

inline Sizes check_inputs(const LayerInputs& in) {
  if (in.batch_sizes) {
    check_rank("input", in.x, 2, "[entries, input_size] with batch_sizes");
    check_rank("batch_sizes", *in.batch_sizes, 1, "[steps]");
    check_tensor("batch_sizes", *in.batch_sizes, {in.batch_sizes->size(0)}, ScalarType::Long,
                 Device(torch::headeronly::DeviceType::CPU));
  } else {
    check_rank("input", in.x, 3, "[steps, batch, input_size]");
  }
  check_rank("c0", in.c0, 3, "[directions, batch, hidden_size]");
  check_rank("h0", in.h0, 3, "[directions, batch, outputs]");
  const ScalarType type = dtype_of(in.x);
  const Device device = in.x.device();
  if (type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::BFloat16 &&
      type != ScalarType::Half)
    fail("input must be float32, float64, bfloat16 or float16, got ", TypeText{type});
  const Sizes size = sizes_of(in);
  if (size.directions != 1 && size.directions != 2)
    fail("c0 must have 1 or 2 directions, got ", size.directions);
  if (size.hidden < 1) fail("c0 must have at least 1 hidden unit, got ", size.hidden);
  if (size.outputs < 1) fail("h0 must have at least 1 output, got ", size.outputs);
  if (size.outputs > size.hidden)
    fail("h0 must have at most the ", size.hidden, " units of c0, got ", size.outputs);
  check_size(size, in.batch_sizes.has_value());
  check_memory("input", in.x, in.x.sizes(), type);
  check_tensor("h0", in.h0, {size.directions, size.batch, size.outputs}, type, device);
  check_tensor("c0", in.c0, {size.directions, size.batch, size.hidden}, type, device);
  check_weights(in, size, type, device);
  if (in.batch_sizes) check_batch_sizes(in, size);
  if (in.lengths) check_tensor("lengths", *in.lengths, {size.batch}, ScalarType::Long, device);
  if (in.resets) check_tensor("resets", *in.resets, {size.steps, size.batch}, ScalarType::Bool, device);
  return size;
}

inline void check_sequence(const Name& name, const Tensor& tensor, const LayerInputs& in, int64_t columns,
                           ScalarType type) {
  const Sizes size = sizes_of(in);
  if (in.batch_sizes) return check_tensor(name, tensor, {size.entries, columns}, type, in.x.device());
  check_tensor(name, tensor, {size.steps, size.batch, columns}, type, in.x.device());
}

// `in` has been checked.
inline void check_outputs(const LayerInputs& in, const Tensor& y) {
  check_sequence("y", y, in, in.h0.size(0) * in.h0.size(2), dtype_of(in.x));
}

inline void check_backward(const LayerInputs& in, const OutputGradients& grads, const SavedForBackward& saved,
                           ScalarType kept) {
  const auto& [T, N, I, H, P, D, S] = check_inputs(in);
  const ScalarType type = dtype_of(in.x);
  const Device device = in.x.device();
  check_outputs(in, saved.y);
  check_sequence("cells", saved.cells, in, D * H, kept);
  check_sequence("gates", saved.gates, in, D * 4 * H, kept);
  if (grads.y) check_sequence("grad_y", *grads.y, in, D * P, type);
  if (grads.h_n) check_tensor("grad_h_n", *grads.h_n, {D, N, P}, type, device);
  if (grads.c_n) check_tensor("grad_c_n", *grads.c_n, {D, N, H}, type, device);
  if (grads.cells) check_sequence("grad_cells", *grads.cells, in, D * H, kept);
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
