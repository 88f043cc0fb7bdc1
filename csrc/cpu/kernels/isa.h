// Which instruction set the kernels use on this processor.
#pragma once

#include "kernels.h"

namespace fusedlstm::cpu {

// The kernels of the best instruction set of this processor, or of the one that FUSEDLSTM_ISA names.
template <class T, class W>
const ForwardKernels<T, W>& forward_kernels();
template <class T, class W>
const BackwardKernels<T, W>& backward_kernels();

const char* instruction_set();

}  // namespace fusedlstm::cpu
