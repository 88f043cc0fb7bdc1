// Sizes of one layer as its kernels see them, and which rows take part in which steps: a kernel parameter.
#pragma once

#include <cstdint>

namespace fusedlstm::cuda {

struct KernelSizes {
  int64_t steps, batch, hidden, outputs, directions, entries;
  const int64_t* lengths;  // [N]     steps of each row; null: T for all
  const bool* resets;      // [T, N]  where a segment begins, entered from zero states; null: nowhere
  // [T + 1]  first entry of each step of a packed batch, whose sequence tensors are [S, ...] with entries of
  // the rows that take part alone; null: a padded batch, whose sequence tensors are [T, N, ...], S = T * N.
  const int64_t* offsets;
};

}  // namespace fusedlstm::cuda
