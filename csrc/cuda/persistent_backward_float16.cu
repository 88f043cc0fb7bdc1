#include "persistent_backward.cuh"

template bool fusedlstm::cuda::launch_backward<fusedlstm::cuda::Half>(const PersistentBackwardArgs&, Stream);
