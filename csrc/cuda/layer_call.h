// One call on a GPU: the layer with dense tensors, its device, its plan, and its sizes as the kernels see
// them.
#pragma once

#include <initializer_list>
#include <optional>

#include "../layer.h"
#include "context.h"
#include "persistent.h"
#include "plan.h"
#include "sizes.h"

namespace fusedlstm::cuda {

struct LayerCall {
  Layer layer;
  ScalarType io, compute;
  Context context;
  KernelPlan plan;
  KernelSizes kernel_sizes;

  LayerCall(const LayerInputs& in, Pass pass);

  Type type() const;  // io
  Stream stream() const { return context.stream(); }
  bool persistent() const { return plan.persistent.has_value(); }
  bool empty() const { return layer.size.steps == 0 || layer.size.batch == 0; }

  // Address of an element of a tensor of type io.
  void* at(const Tensor& tensor, int64_t offset) const {
    return static_cast<char*>(tensor.data_ptr()) + offset * io_bytes(type());
  }
  Tensor new_io(std::initializer_list<int64_t> shape) const;
  Tensor new_compute(std::initializer_list<int64_t> shape) const;

  // One weight of all directions below each other, so that one product takes them. A single direction's is
  // not copied.
  Tensor stacked(const Tensor& (Layer::*weight)(int64_t) const) const;
  // A copy of [D, N, H] in the given type, even if it has that type already.
  Tensor converted(const Tensor& tensor, ScalarType type) const;
  // [D, 4H] compute: the sum of both biases; nothing without biases.
  std::optional<Tensor> bias_sum() const;
};

// What a persistent launch needs besides the layer's own tensors, until its end: the weights as its blocks
// read them, and the memory of the exchange.
struct PersistentMemory {
  Tensor weights, words;
  Exchange exchange;

  PersistentMemory(const LayerCall& call, const Tensor& weight_hh);
};

}  // namespace fusedlstm::cuda
