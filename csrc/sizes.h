// Sizes of one layer, the direction of a call through it, and their arithmetic; no torch, no CUDA.
#pragma once

#include <cstdint>

namespace fusedlstm {

enum class Pass { forward, backward };

// T steps, N sequences, I inputs, H hidden units, P outputs (H without a projection), D directions.
struct Sizes {
  int64_t steps, batch, input, hidden, outputs, directions;
};

constexpr int64_t ceil_div(int64_t n, int64_t divisor) {
  return (n + divisor - 1) / divisor;
}

}  // namespace fusedlstm
