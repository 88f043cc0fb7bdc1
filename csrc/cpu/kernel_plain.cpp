// The instruction set every processor of the architecture has: SSE2 on x86-64, NEON on arm64.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../cell.h"
#include "kernel.h"

namespace fusedlstm::cpu {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kAccumulators = 12;
#include "kernel_impl.h"
}  // namespace

template <class T>
const Kernel<T>& kernel_plain() {
  static constexpr Kernel<T> kernel = make_kernel<T>("plain");
  return kernel;
}
template const Kernel<float>& kernel_plain();
template const Kernel<double>& kernel_plain();
}  // namespace fusedlstm::cpu
