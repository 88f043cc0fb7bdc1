#include "persistent_forward.cuh"

template bool fusedlstm::cuda::launch_forward<fusedlstm::cuda::Half>(const PersistentForwardArgs&, Stream);
