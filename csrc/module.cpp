// fusedlstm._C: importing it registers the operators (ops.cpp); the functions here never see a tensor.
#include <pybind11/pybind11.h>

#include "cpu/recurrence.h"

#define FUSEDLSTM_STRING_(x) #x
#define FUSEDLSTM_STRING(x) FUSEDLSTM_STRING_(x)

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = __VERSION__;
  info["torch"] = FUSEDLSTM_STRING(FUSEDLSTM_TORCH_VERSION);
  info["cuda"] = FUSEDLSTM_STRING(FUSEDLSTM_CUDA_VERSION);  // empty without CUDA kernels
  info["cuda_archs"] = FUSEDLSTM_STRING(FUSEDLSTM_CUDA_ARCHS);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of fusedlstm.";
  m.def("build_info", &build_info, "How this extension was built, as text by name.");
  m.def("instruction_set", &fusedlstm::cpu::instruction_set,
        "Instruction set that the CPU kernels use on this processor.");
}
