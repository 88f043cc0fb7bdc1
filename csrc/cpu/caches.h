// The caches of this processor.
#pragma once

#include <cstdint>

namespace fusedlstm::cpu {

// Bytes of weights that a core is to keep in its own L2 cache. The other half is for rows and results.
int64_t cached_weight_bytes();

}  // namespace fusedlstm::cpu
