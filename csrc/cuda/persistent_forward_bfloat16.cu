#include "persistent_forward.cuh"

template bool fusedlstm::cuda::launch_forward<fusedlstm::cuda::BFloat16>(const PersistentForwardArgs&,
                                                                         Stream);
