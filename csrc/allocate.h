// Tensors that an operator makes. The class and text of torch's own error do not pass the stable ABI, so the
// error here says how many bytes could not be allocated. fusedlstm/errors.py makes torch's error of it on a
// GPU.
#pragma once

#include <exception>
#include <optional>

#include "checks.h"

namespace fusedlstm {

[[noreturn]] inline void fail_to_allocate(int64_t bytes, const Device& device) {
  fail("out of memory: could not allocate ", bytes, " bytes on ", DeviceText{device});
}

// `make` makes a tensor of these sizes on the device of `like`. Its arguments are right, so what fails is
// memory.
template <class Make>
Tensor allocated(const Tensor& like, Shape sizes, std::optional<ScalarType> type, const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    int64_t bytes = type ? bytes_of(*type) : static_cast<int64_t>(like.element_size());
    for (const int64_t size : sizes) bytes *= size;
    fail_to_allocate(bytes, like.device());
  }
}

inline Tensor allocate(const Tensor& like, Shape sizes, std::optional<ScalarType> type = {}) {
  return allocated(like, sizes, type, [&] { return torch::stable::new_empty(like, sizes, type); });
}
inline Tensor allocate_zeros(const Tensor& like, Shape sizes, std::optional<ScalarType> type = {}) {
  return allocated(like, sizes, type, [&] { return torch::stable::new_zeros(like, sizes, type); });
}
inline Tensor copied(const Tensor& tensor) {
  return allocated(tensor, tensor.sizes(), {}, [&] { return torch::stable::clone(tensor); });
}

// The tensor itself if it is so already.
inline Tensor dense(const Tensor& tensor) {
  return allocated(tensor, tensor.sizes(), {}, [&] { return torch::stable::contiguous(tensor); });
}
inline Tensor cast(const Tensor& tensor, ScalarType type) {
  if (tensor.scalar_type() == type) return tensor;  // saves a call into torch
  return allocated(tensor, tensor.sizes(), type, [&] { return torch::stable::to(tensor, type); });
}

}  // namespace fusedlstm
