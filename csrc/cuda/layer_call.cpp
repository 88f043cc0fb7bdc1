#include "layer_call.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>

#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

// FUSEDLSTM_PRINT_PLAN=1 shows each plan when it is first used.
void print_once(const KernelPlan& plan) {
  static const char* const choice = std::getenv("FUSEDLSTM_PRINT_PLAN");
  if (!choice || std::string(choice) != "1") return;
  static std::mutex mutex;
  static std::set<std::string> shown;
  const std::lock_guard lock(mutex);
  if (const std::string text = to_string(plan); shown.insert(text).second)
    std::fprintf(stderr, "fusedlstm: %s\n", text.c_str());
}

// FUSEDLSTM_STRATEGY overrules the model of the plan.
StrategyChoice strategy_choice() {
  const char* const choice = std::getenv("FUSEDLSTM_STRATEGY");
  const std::optional<StrategyChoice> named = strategy_named(choice ? choice : "fastest");
  if (!named) fail("FUSEDLSTM_STRATEGY must be ", kStrategyNames, ", got ", choice);
  return *named;
}

// FUSEDLSTM_PLAN divides the layer for persistent launches, for a comparison of divisions.
std::optional<Division> division() {
  const char* const text = std::getenv("FUSEDLSTM_PLAN");
  if (!text) return std::nullopt;
  Division division{};
  int read = 0;
  if (std::sscanf(text, "%d,%d,%d%n", &division.groups, &division.weight_tiles, &division.row_tiles_per_chunk,
                  &read) != 3 ||
      text[read] != '\0')
    fail("FUSEDLSTM_PLAN must be groups,weight_tiles,row_tiles_per_chunk, such as 2,4,4, got ", text);
  return division;
}

// FUSEDLSTM_SM_MARGIN multiprocessors are left to other work, such as the kernels that DDP communicates with.
Limits limits_with_margin(const Context& context) {
  Limits limits = context.limits();
  const char* const margin = std::getenv("FUSEDLSTM_SM_MARGIN");
  if (!margin) return limits;
  char* end = nullptr;
  const long count = std::strtol(margin, &end, 10);
  if (end == margin || *end != '\0' || count < 0 || count >= limits.multiprocessors)
    fail("FUSEDLSTM_SM_MARGIN must be a number from 0 to ", limits.multiprocessors - 1, ", got ", margin);
  limits.multiprocessors -= static_cast<int>(count);
  return limits;
}

Type type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return Type::float64;
    case ScalarType::Half:
      return Type::float16;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    default:
      return Type::float32;
  }
}

// Both one after the other, on the device of `like`. From pinned memory, which torch keeps until the copy is
// done: the host need not wait for the device.
Tensor on_device(const Tensor& like, const std::vector<int64_t>& first, const std::vector<int64_t>& second) {
  const auto size = static_cast<int64_t>(first.size() + second.size());
  const Device device = like.device(), host(torch::headeronly::DeviceType::CPU);
  const Tensor pinned = torch::stable::empty({size}, ScalarType::Long, std::nullopt, host, device.is_cuda());
  std::copy(second.begin(), second.end(), std::copy(first.begin(), first.end(), pointer<int64_t>(pinned)));
  return allocated(like, {size}, ScalarType::Long,
                   [&] { return torch::stable::to(pinned, device, /*non_blocking=*/true, /*copy=*/true); });
}

}  // namespace

LayerCall::LayerCall(const LayerInputs& in, Pass pass)
    : layer(in, in.x.scalar_type(), in.x.scalar_type()),
      io(in.x.scalar_type()),
      compute(compute_type(in.x)),
      context(in.x.get_device_index(), type_of(io), in.allow_tf32),
      plan(make_plan({.steps = layer.size.steps,
                      .batch = layer.size.batch,
                      .hidden = layer.size.hidden,
                      .outputs = layer.size.outputs,
                      .directions = layer.size.directions,
                      .type = type_of(io),
                      .tf32 = in.allow_tf32,
                      .pass = pass},
                     limits_with_margin(context), strategy_choice(), division())),
      kernel_sizes{layer.size.steps,
                   layer.size.batch,
                   layer.size.hidden,
                   layer.size.outputs,
                   layer.size.directions,
                   layer.size.entries,
                   pointer<const int64_t>(layer.lengths),
                   pointer<const bool>(layer.resets),
                   nullptr} {
  print_once(plan);
  if (!layer.batch_sizes) return;
  packed.emplace(layer);
  packed_on_device = on_device(layer.x, packed->offsets, packed->lengths);
  kernel_sizes.offsets = pointer<const int64_t>(packed_on_device);
  kernel_sizes.lengths = kernel_sizes.offsets + packed->offsets.size();
}

Type LayerCall::type() const {
  return type_of(io);
}

Tensor LayerCall::new_io(Shape shape) const {
  return allocate(layer.x, shape);
}
Tensor LayerCall::new_compute(Shape shape) const {
  return allocate(layer.x, shape, compute);
}

Tensor LayerCall::kept_gates(const Tensor& inputs) const {
  return io == compute ? inputs : new_io(inputs.sizes());
}

Tensor LayerCall::stacked(const Tensor& (Layer::*weight)(int64_t) const) const {
  const Tensor& first = (layer.*weight)(0);
  if (layer.size.directions == 1) return first;
  const int64_t rows = first.size(0);
  Tensor stacked = allocate(first, {layer.size.directions * rows, first.size(1)});
  for (int64_t d = 0; d < layer.size.directions; ++d) {
    Tensor part = torch::stable::narrow(stacked, 0, d * rows, rows);
    torch::stable::copy_(part, (layer.*weight)(d));
  }
  return stacked;
}

Tensor LayerCall::converted(const Tensor& tensor, ScalarType type) const {
  const auto& [T, N, I, H, P, D, S] = layer.size;
  Tensor out = allocate(layer.x, {D, N, H}, type);
  torch::stable::copy_(out, tensor);
  return out;
}

std::optional<Tensor> LayerCall::bias_sum() const {
  if (!layer.biased) return std::nullopt;
  const int64_t gates = 4 * layer.size.hidden;
  Tensor bias = new_compute({layer.size.directions, gates});
  for (int64_t d = 0; d < layer.size.directions; ++d) {
    const Tensor part = torch::stable::narrow(bias, 0, d, 1);
    sum_biases(layer.bias_ih(d).data_ptr(), layer.bias_hh(d).data_ptr(), part.data_ptr(), gates, type(),
               stream());
  }
  return bias;
}

PersistentMemory::PersistentMemory(const LayerCall& call, const Tensor& weight_hh)
    : weights(call.new_io({packed_bytes(call.kernel_sizes, *call.plan.persistent) / io_bytes(call.type())})),
      words(allocate(call.layer.x,
                     {slot_words(call.kernel_sizes, *call.plan.persistent) +
                      flag_words(call.kernel_sizes, *call.plan.persistent)},
                     ScalarType::Int)),
      exchange(clear_exchange(call.kernel_sizes, *call.plan.persistent, pointer<uint32_t>(words), call.type(),
                              call.stream())) {
  pack_weights(call.kernel_sizes, *call.plan.persistent, weight_hh.data_ptr(), weights.data_ptr(),
               call.type(), call.stream());
}

}  // namespace fusedlstm::cuda
