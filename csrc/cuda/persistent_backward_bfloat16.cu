#include "persistent_backward.cuh"

template bool fusedlstm::cuda::launch_backward<fusedlstm::cuda::BFloat16>(const PersistentBackwardArgs&,
                                                                          Stream);
