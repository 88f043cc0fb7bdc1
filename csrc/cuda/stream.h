// A CUDA stream, and how a kernel is to be started on it, where no CUDA header is at hand.
#pragma once

#include <cstddef>

struct CUstream_st;

namespace fusedlstm::cuda {

using Stream = CUstream_st*;  // the same type as cudaStream_t

struct Launch {
  unsigned blocks, threads;
  Stream stream;
  std::size_t shared_memory = 0;  // bytes of dynamic shared memory a block gets
  bool cooperative = false;       // all blocks are resident at once, or the launch is refused
};

}  // namespace fusedlstm::cuda
