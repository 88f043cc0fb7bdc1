#include "work.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>

#include "stepwise.h"

namespace fusedlstm::cuda {
namespace {

// FUSEDLSTM_PRINT_PLAN=1 shows each plan when it is first used.
void announce(const KernelPlan& plan) {
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
  STD_TORCH_CHECK(named, "FUSEDLSTM_STRATEGY must be ", kStrategyNames, ", got ", choice);
  return *named;
}

// FUSEDLSTM_SM_MARGIN multiprocessors are left to other work, such as the kernels that DDP communicates with.
Limits limits_of(const Context& context) {
  Limits limits = context.limits();
  const char* const margin = std::getenv("FUSEDLSTM_SM_MARGIN");
  if (!margin) return limits;
  char* end = nullptr;
  const long count = std::strtol(margin, &end, 10);
  STD_TORCH_CHECK(end != margin && *end == '\0' && count >= 0 && count < limits.multiprocessors,
                  "FUSEDLSTM_SM_MARGIN must be a number from 0 to ", limits.multiprocessors - 1, ", got ",
                  margin);
  limits.multiprocessors -= static_cast<int>(count);
  return limits;
}

Inputs checked(const Inputs& inputs) {
  (void)Layer(inputs);  // the caller's own tensors, before any is copied
  const ScalarType type = inputs.x.scalar_type();
  return prepare(inputs, type, type);
}

}  // namespace

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

Work::Work(const Inputs& inputs, bool tf32, Pass pass)
    : in(checked(inputs)),
      layer(in),
      io(in.x.scalar_type()),
      compute(compute_type(in.x)),
      context(in.x.get_device_index(), type_of(io), tf32),
      plan(make_plan({.steps = layer.steps,
                      .batch = layer.batch,
                      .hidden = layer.hidden,
                      .outputs = layer.outputs,
                      .directions = layer.directions,
                      .type = type_of(io),
                      .tf32 = tf32,
                      .pass = pass},
                     limits_of(context), strategy_choice())),
      size{layer.steps,
           layer.batch,
           layer.hidden,
           layer.outputs,
           layer.directions,
           pointer<const int64_t>(in.lengths),
           pointer<const bool>(in.resets)} {
  announce(plan);
}

Tensor converted(const Tensor& tensor, ScalarType type, const Work& work) {
  const Layer& layer = work.layer;
  Tensor out = new_empty(work.in.x, {layer.directions, layer.batch, layer.hidden}, type);
  torch::stable::copy_(out, tensor);
  return out;
}

std::optional<Tensor> bias_sum(const Work& work) {
  const Layer& layer = work.layer;
  if (!layer.biased) return std::nullopt;
  const int64_t gates = 4 * layer.hidden;
  Tensor bias = work.new_compute({layer.directions, gates});
  for (int64_t d = 0; d < layer.directions; ++d) {
    const Tensor part = slice(bias, 0, d, 1);
    sum_biases(layer.bias_ih(d).data_ptr(), layer.bias_hh(d).data_ptr(), part.data_ptr(), gates, work.type(),
               work.stream());
  }
  return bias;
}

}  // namespace fusedlstm::cuda
