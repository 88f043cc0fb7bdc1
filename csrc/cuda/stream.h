// A CUDA stream where no CUDA header is at hand; cudaStream_t is the same type.
#pragma once

struct CUstream_st;

namespace fusedlstm::cuda {

using Stream = CUstream_st*;

}  // namespace fusedlstm::cuda
