// Sizes of one layer, the direction of a call through it, and their arithmetic; no torch, no CUDA.
#pragma once

#include <cstdint>

namespace fusedlstm {

enum class Pass { forward, backward };

// T steps, N sequences, I inputs, H hidden units, P outputs (H without a projection), D directions. S entries
// are the steps of all sequences: T * N in a padded batch, the sum of the lengths in a packed one.
struct Sizes {
  int64_t steps, batch, input, hidden, outputs, directions, entries;
};

constexpr int64_t ceil_div(int64_t n, int64_t divisor) {
  return (n + divisor - 1) / divisor;
}

}  // namespace fusedlstm
