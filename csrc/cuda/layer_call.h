// One call on a GPU: the layer with dense tensors, its device, its plan, and its sizes as the kernels see
// them.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

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
  std::optional<PackedSteps> packed;
  std::optional<Tensor> packed_on_device;  // [T + 1 + N] int64: offsets and lengths of `packed`
  KernelSizes kernel_sizes;

  LayerCall(const LayerInputs& in, Pass pass);

  Type type() const;  // io
  Stream stream() const { return context.stream(); }
  bool persistent() const { return plan.persistent.has_value(); }
  bool empty() const { return layer.size.entries == 0; }

  // In the step that direction d takes as its step-th: its first entry, and the rows that have one.
  int64_t first_entry(int64_t d, int64_t step) const {
    const int64_t t = d == 0 ? step : layer.size.steps - 1 - step;
    return packed ? packed->offsets[t] : t * layer.size.batch;
  }
  int64_t rows(int64_t d, int64_t step) const {
    const int64_t t = d == 0 ? step : layer.size.steps - 1 - step;
    return packed ? packed->offsets[t + 1] - packed->offsets[t] : layer.size.batch;
  }
  // The rows that have one in any direction.
  int64_t rows(int64_t step) const { return std::max(rows(0, step), rows(layer.size.directions - 1, step)); }

  // Address of an element of a tensor of type io.
  void* at(const Tensor& tensor, int64_t offset) const {
    return static_cast<char*>(tensor.data_ptr()) + offset * io_bytes(type());
  }
  Tensor new_io(Shape shape) const;
  Tensor new_compute(Shape shape) const;
  // For the gates that the backward pass reads: the memory of `inputs`, what they are made of, or their own.
  Tensor kept_gates(const Tensor& inputs) const;

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
