// The instruction set every processor of the architecture has: SSE2 on x86-64, NEON on arm64.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../../cell.h"
#include "kernels.h"

namespace fusedlstm::cpu {
namespace {
constexpr int kVectorBytes = 16;
constexpr int kAccumulators = 12;
#include "kernels.inl"
}  // namespace

template <class T, class W>
const Kernels<T, W>& kernels_plain() {
  static constexpr Kernels<T, W> kernels = make_kernels<T, W>();
  return kernels;
}
template const Kernels<double, double>& kernels_plain();
template const Kernels<float, float>& kernels_plain();
template const Kernels<float, BFloat16>& kernels_plain();
template const Kernels<float, Half>& kernels_plain();
}  // namespace fusedlstm::cpu
