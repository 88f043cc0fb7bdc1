// fusedlstm._C: importing it registers the operators (ops.cpp); the functions here never see a tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/kernels/isa.h"
#include "cpu/plan.h"
#include "cuda/launch_time.h"
#include "cuda/plan.h"

// libstdc++'s shared_ptr asks this flag of glibc, from 2.32 on, whether there has ever been a second thread.
// One of our own, always false, lets a wheel run where torch's does, with glibc 2.28.
extern "C" {
char __libc_single_threaded = 0;
}

#define FUSEDLSTM_STRING_(x) #x
#define FUSEDLSTM_STRING(x) FUSEDLSTM_STRING_(x)

namespace fusedlstm {
namespace {

using namespace pybind11::literals;

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = __VERSION__;
  info["torch"] = FUSEDLSTM_STRING(FUSEDLSTM_TORCH_VERSION);
  info["cuda"] = FUSEDLSTM_STRING(FUSEDLSTM_CUDA_VERSION);  // empty without CUDA kernels
  info["cuda_archs"] = FUSEDLSTM_STRING(FUSEDLSTM_CUDA_ARCHS);
  return info;
}

std::optional<double> launch_us() {
#ifdef FUSEDLSTM_WITH_CUDA
  return cuda::launch_us();
#else
  return std::nullopt;
#endif
}

cuda::Type type_named(const std::string& name) {
  if (name == "float32") return cuda::Type::float32;
  if (name == "float64") return cuda::Type::float64;
  if (name == "float16") return cuda::Type::float16;
  if (name == "bfloat16") return cuda::Type::bfloat16;
  throw std::invalid_argument("plan: dtype must be float32, float64, float16 or bfloat16, got " + name);
}

cuda::StrategyChoice choice_named(const std::string& name) {
  if (const std::optional<cuda::StrategyChoice> choice = cuda::strategy_named(name)) return *choice;
  throw std::invalid_argument(std::string("plan: strategy must be ") + cuda::kStrategyNames + ", got " +
                              name);
}

void bind_plan(pybind11::module_& m) {
  using namespace cuda;
  pybind11::class_<Problem>(
      m, "Problem", "One pass of a layer: T steps, N sequences, H hidden units, P outputs, D directions.")
      .def(pybind11::init([](int64_t steps, int64_t batch, int64_t hidden, std::optional<int64_t> outputs,
                             int64_t directions, const std::string& dtype, bool tf32, bool backward) {
             return Problem{steps,      batch,
                            hidden,     outputs.value_or(hidden),
                            directions, type_named(dtype),
                            tf32,       backward ? Pass::backward : Pass::forward};
           }),
           pybind11::kw_only(), "steps"_a, "batch"_a, "hidden"_a, "outputs"_a = pybind11::none(),
           "directions"_a = 1, "dtype"_a = "float32", "tf32"_a = false, "backward"_a = false);
  pybind11::class_<Limits>(m, "Limits", "What a GPU offers.")
      .def(pybind11::init<int, int, int, int, int, double, int64_t, double, double>(), pybind11::kw_only(),
           "multiprocessors"_a, "threads_per_multiprocessor"_a, "registers_per_multiprocessor"_a = 65'536,
           "shared_memory"_a = 0, "compute_capability"_a = 0, "clock_ghz"_a = 1.0,
           "l2_bytes"_a = Limits{}.l2_bytes, "memory_gb_s"_a = Limits{}.memory_gb_s,
           "launch_us"_a = Limits{}.launch_us)
      .def_readonly("launch_us", &Limits::launch_us);
  pybind11::class_<StepwisePlan>(m, "StepwisePlan", "The kernel that updates all cells of a step.")
      .def_readonly("units", &StepwisePlan::units)
      .def_readonly("threads", &StepwisePlan::threads)
      .def_readonly("blocks", &StepwisePlan::blocks)
      .def_readonly("registers", &StepwisePlan::registers)
      .def_readonly("launches_per_step", &StepwisePlan::launches_per_step);
  pybind11::class_<PersistentPlan>(m, "PersistentPlan", "The launch that runs all steps.")
      .def_readonly("groups", &PersistentPlan::groups)
      .def_readonly("rows", &PersistentPlan::rows)
      .def_readonly("members", &PersistentPlan::members)
      .def_readonly("weight_tiles", &PersistentPlan::weight_tiles)
      .def_readonly("k_blocks", &PersistentPlan::k_blocks)
      .def_readonly("row_tiles_per_chunk", &PersistentPlan::row_tiles_per_chunk)
      .def_readonly("chunks", &PersistentPlan::chunks)
      .def_readonly("octets", &PersistentPlan::octets)
      .def_readonly("quads", &PersistentPlan::quads)
      .def_property_readonly(
          "signal", [](const PersistentPlan& p) { return p.signal == Signal::flag ? "flag" : "data"; })
      .def_property_readonly("shared_bytes", &shared_bytes);
  pybind11::class_<KernelPlan>(m, "KernelPlan", "Which kernels run a layer and how they share its work.")
      .def_property_readonly(
          "strategy", [](const KernelPlan& plan) { return plan.persistent ? "persistent" : "stepwise"; })
      .def_readonly("stepwise", &KernelPlan::stepwise)
      .def_readonly("persistent", &KernelPlan::persistent)
      .def_readonly("stepwise_us", &KernelPlan::stepwise_us)
      .def_readonly("persistent_us", &KernelPlan::persistent_us)
      .def_readonly("reason", &KernelPlan::reason)
      .def("__repr__", &to_string);
  m.def(
      "make_plan",
      [](const Problem& problem, const Limits& limits, const std::string& strategy,
         std::optional<std::array<int, 3>> division) {
        std::optional<Division> forced;
        if (division) forced = {(*division)[0], (*division)[1], (*division)[2]};
        return make_plan(problem, limits, choice_named(strategy), forced);
      },
      "problem"_a, "limits"_a, "strategy"_a = "fastest", "division"_a = pybind11::none(),
      "Chooses; asks no GPU. A division is (groups, weight_tiles, row_tiles_per_chunk).");
  m.def(
      "persistent_plans",
      [](const Problem& problem, const Limits& limits, const std::string& signal) {
        if (signal != "data" && signal != "flag")
          throw std::invalid_argument("plan: signal must be data or flag, got " + signal);
        std::vector<std::pair<PersistentPlan, double>> plans;
        for (const auto& [plan, us] :
             persistent_plans(problem, limits, signal == "flag" ? Signal::flag : Signal::data))
          plans.emplace_back(plan, us);
        return plans;
      },
      "problem"_a, "limits"_a, "signal"_a,
      "All that fit, each with its predicted microseconds a step, the fastest first.");
}

void bind_cpu_plan(pybind11::module_& m) {
  pybind11::class_<cpu::ThreadPlan>(m, "CpuPlan", "How the threads of a call share a layer on the CPU.")
      .def_readonly("groups", &cpu::ThreadPlan::groups)
      .def_readonly("unit_threads", &cpu::ThreadPlan::unit_threads)
      .def_readonly("row_threads", &cpu::ThreadPlan::row_threads)
      .def_readonly("time_block", &cpu::ThreadPlan::time_block)
      .def_readonly("packs", &cpu::ThreadPlan::packs);
  m.def(
      "make_cpu_plan",
      [](int64_t steps, int64_t batch, int64_t input, int64_t hidden, std::optional<int64_t> outputs,
         int64_t directions, int64_t threads, bool backward, int64_t cached_weight_bytes,
         int64_t packed_from_rows, int64_t packed_from_entries) {
        const Sizes sizes{steps, batch, input, hidden, outputs.value_or(hidden), directions, steps * batch};
        return cpu::make_thread_plan(sizes, threads, backward ? Pass::backward : Pass::forward,
                                     cached_weight_bytes, {packed_from_rows, packed_from_entries});
      },
      pybind11::kw_only(), "steps"_a, "batch"_a, "input"_a, "hidden"_a, "outputs"_a = pybind11::none(),
      "directions"_a = 1, "threads"_a, "backward"_a = false, "cached_weight_bytes"_a = 256 << 10,
      "packed_from_rows"_a = 4, "packed_from_entries"_a = 24, "Chooses; asks no processor.");
}

}  // namespace
}  // namespace fusedlstm

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of fusedlstm.";
  m.def("build_info", &fusedlstm::build_info, "How this extension was built, as text by name.");
  m.def("instruction_set", &fusedlstm::cpu::instruction_set,
        "Instruction set that the CPU kernels use on this processor.");
  m.def("launch_us", &fusedlstm::launch_us,
        "Microseconds in which this host launches a kernel on the current GPU; None without CUDA kernels.");
  fusedlstm::bind_plan(m);
  fusedlstm::bind_cpu_plan(m);
}
