#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fusedlstm::cpu {
namespace {

#if defined(__x86_64__)
bool has_amx() {
  return __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("avx512bf16");
}
// Linux lets a process use the tile registers once it has asked for them. It is asked only when bfloat16
// comes, because the registers make the process's signal frames larger.
bool amx_permitted() {
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
struct NamedKernels {
  std::string name;
  const Kernels<T, W>* kernels;
};

// What this processor can run, best first.
template <class T, class W>
std::vector<NamedKernels<T, W>> usable_kernels() {
  std::vector<NamedKernels<T, W>> usable;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    if constexpr (std::is_same_v<W, BFloat16>) {
      if (has_amx() && amx_permitted()) usable.push_back({"amx", &amx_kernels});
    } else if (has_amx()) {
      usable.push_back({"amx", &std::get<Kernels<T, W>>(avx512_kernels)});
    }
    usable.push_back({"avx512", &std::get<Kernels<T, W>>(avx512_kernels)});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    usable.push_back({"avx2", &std::get<Kernels<T, W>>(avx2_kernels)});
#endif
  usable.push_back({"plain", &std::get<Kernels<T, W>>(plain_kernels)});
  return usable;
}

// The best, or the one that FUSEDLSTM_ISA names.
template <class T, class W>
const NamedKernels<T, W>& choose_kernels() {
  static const NamedKernels<T, W> chosen = [] {
    const std::vector<NamedKernels<T, W>> usable = usable_kernels<T, W>();
    const char* wanted = std::getenv("FUSEDLSTM_ISA");
    if (wanted == nullptr) return usable.front();
    std::string names;
    for (const NamedKernels<T, W>& each : usable) {
      if (each.name == wanted) return each;
      names += (names.empty() ? "" : ", ") + each.name;
    }
    throw std::runtime_error("FUSEDLSTM_ISA must be one this processor has (" + names + "), got " + wanted);
  }();
  return chosen;
}

}  // namespace

template <class T, class W>
const Kernels<T, W>& kernels() {
  return *choose_kernels<T, W>().kernels;
}
template const Kernels<double, double>& kernels();
template const Kernels<float, float>& kernels();
template const Kernels<float, BFloat16>& kernels();
template const Kernels<float, Half>& kernels();

const char* instruction_set() {
  return choose_kernels<float, float>().name.c_str();
}

}  // namespace fusedlstm::cpu
