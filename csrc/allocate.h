// Tensors that an operator makes. The class and text of torch's own error do not pass the stable ABI, so the
// error here says how many bytes could not be allocated. fusedlstm/errors.py makes torch's error of it on a
// GPU.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>

#include "checks.h"

namespace fusedlstm {

[[noreturn]] inline void fail_to_allocate(int64_t bytes, const Device& device) {
  fail("out of memory: could not allocate ", bytes, " bytes on ", DeviceText{device},
       device.is_cuda() ? ", unless an earlier call to the device has failed" : "");
}

// `make` makes a tensor of these sizes on the device of `like`. Its arguments are right, so what fails is
// memory; on a GPU it may also be an earlier kernel, whose error any later call reports.
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

// Uninitialized, dense and on the device of `like`. torch::stable::new_empty finds its operator by name,
// which takes a microsecond longer. In torch's deterministic mode new_empty fills memory with NaN. The stable
// ABI does not show that mode, so the tests set FUSEDLSTM_POISON=1.
inline Tensor allocate(const Tensor& like, Shape sizes, std::optional<ScalarType> type = {}) {
  static const char* const poison = std::getenv("FUSEDLSTM_POISON");
  return allocated(like, sizes, type, [&] {
    std::array<int64_t, 3> strides;  // tensors of a layer have at most three dimensions
    for (int64_t i = static_cast<int64_t>(sizes.size()) - 1, stride = 1; i >= 0; --i) {
      strides[i] = stride;
      stride *= std::max<int64_t>(sizes[i], 1);
    }
    int32_t device = 0, index = 0;
    AtenTensorHandle tensor = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
        static_cast<int32_t>(type ? *type : dtype_of(like)), device, index, &tensor));
    Tensor made(tensor);
    if (poison && made.is_cpu() && made.numel() > 0)
      std::memset(made.data_ptr(), 0xff, made.numel() * made.element_size());  // NaN in every type
    return made;
  });
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
  if (dtype_of(tensor) == type) return tensor;  // saves a call into torch
  return allocated(tensor, tensor.sizes(), type, [&] { return torch::stable::to(tensor, type); });
}

}  // namespace fusedlstm
