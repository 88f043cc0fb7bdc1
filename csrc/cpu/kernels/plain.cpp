// The instruction set every processor of the architecture has: SSE2 on x86-64, NEON on arm64.
#include "../../kept.h"
#include "kernels.h"

namespace fusedlstm::cpu {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kAccumulators = 12;
#include "kernels.inl"
}  // namespace

constinit const KernelSet plain_kernels = make_kernel_set();
}  // namespace fusedlstm::cpu
