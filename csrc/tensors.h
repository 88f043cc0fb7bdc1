// Small helpers around torch's stable tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "stable.h"

namespace fusedlstm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// 16-bit types are formats of storage: gates, cell states and sums are float.
inline ScalarType compute_type(const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                      type == ScalarType::Half,
                  "input must be float32, float64, bfloat16 or float16");
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Dense and of the given type.
inline Tensor prepare(const Tensor& tensor, ScalarType type) {
  if (tensor.scalar_type() == type && tensor.is_contiguous()) return tensor;  // a call into torch saved
  return torch::stable::contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}
inline std::optional<Tensor> prepare(const std::optional<Tensor>& tensor, ScalarType type) {
  return tensor ? std::optional(prepare(*tensor, type)) : std::nullopt;
}
inline std::vector<Tensor> prepare(const std::vector<Tensor>& tensors, ScalarType type) {
  std::vector<Tensor> prepared;
  for (const Tensor& tensor : tensors) prepared.push_back(prepare(tensor, type));
  return prepared;
}

// torch::stable::narrow takes no const tensor.
inline Tensor slice(Tensor tensor, int64_t dim, int64_t start, int64_t length) {
  return torch::stable::narrow(tensor, dim, start, length);
}

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

// Tensors one below the other, so that a product takes them as one; a single one is not copied.
inline Tensor stack(const std::vector<Tensor>& parts) {
  if (parts.size() == 1) return parts[0];
  const int64_t rows = parts[0].size(0);
  Tensor stacked =
      torch::stable::new_empty(parts[0], {static_cast<int64_t>(parts.size()) * rows, parts[0].size(1)});
  for (size_t i = 0; i < parts.size(); ++i) {
    Tensor part = slice(stacked, 0, static_cast<int64_t>(i) * rows, rows);
    torch::stable::copy_(part, parts[i]);
  }
  return stacked;
}

}  // namespace fusedlstm
