// What one call on a GPU has to do: its arguments made dense, device, plan and sizes.
#pragma once

#include <initializer_list>
#include <optional>

#include "../checks.h"
#include "context.h"
#include "plan.h"
#include "sizes.h"

namespace fusedlstm::cuda {

Type type_of(ScalarType type);

// The arguments of a layer made dense, and what every part of its work needs to know.
struct Work {
  Inputs in;
  Layer layer;
  ScalarType io, compute;
  Context context;
  KernelPlan plan;
  KernelSizes size;

  Work(const Inputs& inputs, bool tf32, Pass pass);

  Type type() const { return type_of(io); }
  Stream stream() const { return context.stream(); }
  bool persistent() const { return plan.strategy == Strategy::persistent; }
  bool empty() const { return layer.steps == 0 || layer.batch == 0; }

  // Place of an element of a tensor, counted in the layer's type.
  void* at(const Tensor& tensor, int64_t offset) const {
    return static_cast<char*>(tensor.data_ptr()) + offset * io_bytes(type());
  }
  Tensor new_io(std::initializer_list<int64_t> shape) const { return new_empty(in.x, shape); }
  Tensor new_compute(std::initializer_list<int64_t> shape) const { return new_empty(in.x, shape, compute); }
};

// A copy of [D, N, H] in another type.
Tensor converted(const Tensor& tensor, ScalarType type, const Work& work);
// [D, 4H] compute: the sum of both biases; nothing without biases.
std::optional<Tensor> bias_sum(const Work& work);

}  // namespace fusedlstm::cuda
