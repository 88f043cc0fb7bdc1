// Which instruction set the kernels use on this processor.
#pragma once

#include "kernel.h"

namespace fusedlstm::cpu {

// The kernels of the best instruction set of this processor, or of the one that FUSEDLSTM_ISA names.
template <class T, class W>
const Kernel<T, W>& kernel();

// Their name.
const char* instruction_set();

}  // namespace fusedlstm::cpu
