// Checks of single tensors, and how an error reads: it names the tensor, what it must be and what it was.
// They run for every tensor of every call, so the text is made only for a tensor that fails.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <sstream>
#include <stdexcept>

#include "stable.h"

namespace fusedlstm {

using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;

// STD_TORCH_CHECK would put function, file and line before the text.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << "lstm: " << ... << parts);
  throw std::runtime_error(text.str());
}

// A tensor's name in errors; that of a weight says which direction it belongs to.
struct Name {
  const char* text;
  int64_t direction = -1;
  Name(const char* text, int64_t direction = -1) : text(text), direction(direction) {}
};
inline std::ostream& operator<<(std::ostream& out, const Name& name) {
  out << name.text;
  return name.direction < 0 ? out : out << " of direction " << name.direction;
}

struct ShapeText {
  Shape sizes;
};
inline std::ostream& operator<<(std::ostream& out, const ShapeText& shape) {
  out << "[";
  for (size_t i = 0; i < shape.sizes.size(); ++i) out << (i ? ", " : "") << shape.sizes[i];
  return out << "]";
}

// The same as Tensor::scalar_type(), which calls torch once for each type that it compares with: 10 ns more,
// and a call asks 30 times.
inline ScalarType dtype_of(const Tensor& tensor) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &type));
  return static_cast<ScalarType>(type);
}

// As torch.dtype reads in Python; of a type that no call can take, torch's own name.
struct TypeText {
  ScalarType type;
};
inline std::ostream& operator<<(std::ostream& out, const TypeText& text) {
  switch (text.type) {
    case ScalarType::Double:
      return out << "torch.float64";
    case ScalarType::Float:
      return out << "torch.float32";
    case ScalarType::Half:
      return out << "torch.float16";
    case ScalarType::BFloat16:
      return out << "torch.bfloat16";
    case ScalarType::ComplexDouble:
      return out << "torch.complex128";
    case ScalarType::ComplexFloat:
      return out << "torch.complex64";
    case ScalarType::Long:
      return out << "torch.int64";
    case ScalarType::Int:
      return out << "torch.int32";
    case ScalarType::Short:
      return out << "torch.int16";
    case ScalarType::Char:
      return out << "torch.int8";
    case ScalarType::Byte:
      return out << "torch.uint8";
    case ScalarType::Bool:
      return out << "torch.bool";
    default:
      return out << torch::headeronly::toString(text.type);
  }
}

// Of the types that the operators take and make.
inline int64_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Bool:
      return 1;
    default:  // Float, Int
      return 4;
  }
}

// As torch.device reads in Python. No tensor of any other device reaches the operators.
struct DeviceText {
  Device device;
};
inline std::ostream& operator<<(std::ostream& out, const DeviceText& text) {
  return text.device.is_cuda() ? out << "cuda:" << text.device.index() : out << "cpu";
}

// Every element must lie within the storage: FSDP and offloading free the storages of tensors that still
// exist.
inline void check_memory(const Name& name, const Tensor& tensor, Shape sizes, ScalarType type) {
  int64_t *strides = nullptr, offset = 0, given = 0;
  void* memory = nullptr;
  if (aoti_torch_get_strides(tensor.get(), &strides) != TORCH_SUCCESS ||
      aoti_torch_get_storage_offset(tensor.get(), &offset) != TORCH_SUCCESS ||
      aoti_torch_get_storage_size(tensor.get(), &given) != TORCH_SUCCESS)
    fail(name, " must be a strided tensor with a storage");
  int64_t end = offset + 1;  // of the last element
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) return;
    end += (sizes[i] - 1) * strides[i];
  }
  if (const int64_t needed = end * bytes_of(type); needed > given)
    fail(name, " must have a storage of at least ", needed, " bytes, got one of ", given,
         "; it was freed or shrunk: restore it before the call");
  if (aoti_torch_get_data_ptr(tensor.get(), &memory) != TORCH_SUCCESS || !memory)
    fail(name, " must have memory, got a tensor without data");
}

inline void check_rank(const Name& name, const Tensor& tensor, int64_t rank, const char* layout) {
  if (tensor.dim() != rank) fail(name, " must be ", layout, ", got ", ShapeText{tensor.sizes()});
}

inline Shape check_shape(const Name& name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  const Shape sizes = tensor.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end()))
    fail(name, " must be ", ShapeText{Shape(expected)}, ", got ", ShapeText{sizes});
  return sizes;
}

// A tensor of a call besides its input, beside which it must be.
inline void check_tensor(const Name& name, const Tensor& tensor, std::initializer_list<int64_t> expected,
                         ScalarType type, const Device& device) {
  const Shape sizes = check_shape(name, tensor, expected);
  if (const ScalarType given = dtype_of(tensor); given != type)
    fail(name, " must be ", TypeText{type}, ", got ", TypeText{given});
  if (const Device given = tensor.device(); given != device)
    fail(name, " must be on the device of input, ", DeviceText{device}, ", got ", DeviceText{given});
  check_memory(name, tensor, sizes, type);
}

}  // namespace fusedlstm
