// In place of ../persistent_kernels.cpp: those of bfloat16 alone, which compile in seconds. Tests that change
// the kernels' sources build them once for each change.
#define FUSEDLSTM_EMULATED_DEVICE "emulation/device.h"
#include "cuda/persistent_backward_bfloat16.cu"
#include "cuda/persistent_forward_bfloat16.cu"
#include "cuda/persistent_setup.cu"

namespace fusedlstm::cuda {

bool forward_persistent(const PersistentForwardArgs& args, Type, Stream stream) {
  return launch_forward<BFloat16>(args, stream);
}

bool backward_persistent(const PersistentBackwardArgs& args, Type, Stream stream) {
  return launch_backward<BFloat16>(args, stream);
}

}  // namespace fusedlstm::cuda
