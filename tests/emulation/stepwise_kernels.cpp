// The stepwise kernels for the host compiler, under a name that the build takes for C++.
#define FUSEDLSTM_EMULATED_DEVICE "emulation/device.h"
#include "cuda/stepwise_backward.cu"
#include "cuda/stepwise_forward.cu"
