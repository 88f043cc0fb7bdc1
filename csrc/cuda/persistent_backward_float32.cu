#include "persistent_backward.cuh"

template bool fusedlstm::cuda::launch_backward<float>(const PersistentBackwardArgs&, Stream);
