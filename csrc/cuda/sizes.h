// Sizes of one layer as its kernels see them, and which rows take part in which steps: a kernel parameter.
#pragma once

#include <cstdint>

namespace fusedlstm::cuda {

struct KernelSizes {
  int64_t steps, batch, hidden, outputs, directions;
  const int64_t* lengths;  // [N]     steps of each row; null: T for all
  const bool* resets;      // [T, N]  where a segment begins, entered from zero states; null: nowhere
};

}  // namespace fusedlstm::cuda
