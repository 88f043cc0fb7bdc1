// The CUDA kernels for the host compiler, under a name that the build takes for C++.
#define FUSEDLSTM_EMULATED_DEVICE "emulation/device.h"
#include "cuda/persistent_backward.cu"
#include "cuda/persistent_forward.cu"
#include "cuda/persistent_setup.cu"
#include "cuda/stepwise_backward.cu"
#include "cuda/stepwise_forward.cu"
