#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace fusedlstm::cpu {
namespace {

// The best instruction set of this processor, or the one that FUSEDLSTM_ISA names.
template <class T, class W>
const Kernel<T, W>& choose_kernel() {
  std::vector<const Kernel<T, W>*> usable;  // best first
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    usable.push_back(&kernel_avx512<T, W>());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    usable.push_back(&kernel_avx2<T, W>());
#endif
  usable.push_back(&kernel_plain<T, W>());
  const char* wanted = std::getenv("FUSEDLSTM_ISA");
  if (wanted == nullptr) return *usable.front();
  std::string names;
  for (const Kernel<T, W>* kernel : usable) {
    if (std::string(wanted) == kernel->instruction_set) return *kernel;
    names += (names.empty() ? "" : ", ") + std::string(kernel->instruction_set);
  }
  throw std::runtime_error("FUSEDLSTM_ISA must be one this processor has (" + names + "), got " + wanted);
}

}  // namespace

template <class T, class W>
const Kernel<T, W>& kernel() {
  static const Kernel<T, W>& chosen = choose_kernel<T, W>();
  return chosen;
}
template const Kernel<double, double>& kernel();
template const Kernel<float, float>& kernel();
template const Kernel<float, BFloat16>& kernel();
template const Kernel<float, Half>& kernel();

const char* instruction_set() {
  return kernel<float, float>().instruction_set;
}

}  // namespace fusedlstm::cpu
