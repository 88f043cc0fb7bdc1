// Sizes of one layer and the direction of a call through it; no torch, no CUDA.
#pragma once

#include <cstdint>

namespace fusedlstm {

enum class Pass { forward, backward };

// T steps, N sequences, I inputs, H hidden units, P outputs (H without a projection), D directions.
struct Sizes {
  int64_t steps, batch, input, hidden, outputs, directions;
};

}  // namespace fusedlstm
