#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fusedlstm::cpu {
namespace {

#if defined(__x86_64__)
bool has_tiles() {
  return __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("avx512bf16");
}
// Their registers are given to a process that asks for them, once it has a use for them: they make the frames
// of its signals larger.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

template <class T, class W>
using Named = std::pair<std::string, const Kernel<T, W>*>;

// What this processor has, best first.
template <class T, class W>
std::vector<Named<T, W>> usable_kernels() {
  std::vector<Named<T, W>> usable;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    if constexpr (std::is_same_v<W, BFloat16>) {
      if (has_tiles() && may_use_tiles()) usable.push_back({"amx", &kernel_amx()});
    } else if (has_tiles()) {
      usable.push_back({"amx", &kernel_avx512<T, W>()});
    }
    usable.push_back({"avx512", &kernel_avx512<T, W>()});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    usable.push_back({"avx2", &kernel_avx2<T, W>()});
#endif
  usable.push_back({"plain", &kernel_plain<T, W>()});
  return usable;
}

// The best one, or the one that FUSEDLSTM_ISA names.
template <class T, class W>
const Named<T, W>& chosen() {
  static const Named<T, W> kernel = [] {
    const std::vector<Named<T, W>> usable = usable_kernels<T, W>();
    const char* wanted = std::getenv("FUSEDLSTM_ISA");
    if (wanted == nullptr) return usable.front();
    std::string names;
    for (const Named<T, W>& each : usable) {
      if (each.first == wanted) return each;
      names += (names.empty() ? "" : ", ") + each.first;
    }
    throw std::runtime_error("FUSEDLSTM_ISA must be one this processor has (" + names + "), got " + wanted);
  }();
  return kernel;
}

}  // namespace

template <class T, class W>
const Kernel<T, W>& kernel() {
  return *chosen<T, W>().second;
}
template const Kernel<double, double>& kernel();
template const Kernel<float, float>& kernel();
template const Kernel<float, BFloat16>& kernel();
template const Kernel<float, Half>& kernel();

const char* instruction_set() {
  return chosen<float, float>().first.c_str();
}

}  // namespace fusedlstm::cpu
