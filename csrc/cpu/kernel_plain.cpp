// The instruction set every processor of the architecture has: SSE2 on x86-64, NEON on arm64.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../cell.h"
#include "kernel.h"

namespace fusedlstm::cpu {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kAccumulators = 12;
#include "kernel_impl.h"
}  // namespace

template <class T, class W>
const Kernel<T, W>& kernel_plain() {
  static constexpr Kernel<T, W> kernel = make_kernel<T, W>();
  return kernel;
}
template const Kernel<double, double>& kernel_plain();
template const Kernel<float, float>& kernel_plain();
template const Kernel<float, BFloat16>& kernel_plain();
template const Kernel<float, Half>& kernel_plain();
}  // namespace fusedlstm::cpu
