#include "persistent_forward.cuh"

template bool fusedlstm::cuda::launch_forward<float>(const PersistentForwardArgs&, Stream);
