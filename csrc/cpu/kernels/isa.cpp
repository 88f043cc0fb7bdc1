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
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#ifdef FUSEDLSTM_EMULATED_TILES  // see amx.cpp
bool has_amx() {
  return has_avx512_bf16();
}
bool amx_permitted() {
  return true;
}
#else
bool has_amx() {
  return has_avx512_bf16() && __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-tile");
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
#endif

template <class Table>
struct NamedKernels {
  std::string name;
  const Table* kernels;
};

// Tables of bfloat16 kernels, which have instructions of their own.
template <class Table>
constexpr bool kOfBFloat16 = std::is_same_v<Table, ForwardKernels<float, BFloat16>> ||
                             std::is_same_v<Table, BackwardKernels<float, BFloat16>>;

// What this processor can run, best first. Table is a type of KernelSet.
template <class Table>
std::vector<NamedKernels<Table>> usable_kernels() {
  std::vector<NamedKernels<Table>> usable;
  const auto add = [&](const char* name, const auto& set) {
    usable.push_back({name, &std::get<Table>(set)});
  };
#if defined(__x86_64__)
  if constexpr (kOfBFloat16<Table>) {
    if (has_amx() && amx_permitted()) add("amx", amx_kernels);
    if (has_avx512_bf16()) add("avx512_bf16", avx512_bf16_kernels);
  } else {
    if (has_amx()) add("amx", avx512_kernels);
    if (has_avx512_bf16()) add("avx512_bf16", avx512_kernels);
  }
  if (has_avx512()) add("avx512", avx512_kernels);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    add("avx2", avx2_kernels);
#endif
  add("plain", plain_kernels);
  return usable;
}

// The best, or the one that FUSEDLSTM_ISA names.
template <class Table>
const NamedKernels<Table>& choose_kernels() {
  static const NamedKernels<Table> chosen = [] {
    const std::vector<NamedKernels<Table>> usable = usable_kernels<Table>();
    const char* wanted = std::getenv("FUSEDLSTM_ISA");
    if (wanted == nullptr) return usable.front();
    std::string names;
    for (const NamedKernels<Table>& each : usable) {
      if (each.name == wanted) return each;
      names += (names.empty() ? "" : ", ") + each.name;
    }
    throw std::runtime_error("FUSEDLSTM_ISA must be one this processor has (" + names + "), got " + wanted);
  }();
  return chosen;
}

}  // namespace

template <class T, class W>
const ForwardKernels<T, W>& forward_kernels() {
  return *choose_kernels<ForwardKernels<T, W>>().kernels;
}
template const ForwardKernels<double, double>& forward_kernels();
template const ForwardKernels<float, float>& forward_kernels();
template const ForwardKernels<float, BFloat16>& forward_kernels();
template const ForwardKernels<float, Half>& forward_kernels();

template <class T, class W>
const BackwardKernels<T, W>& backward_kernels() {
  return *choose_kernels<BackwardKernels<T, W>>().kernels;
}
template const BackwardKernels<double, double>& backward_kernels();
template const BackwardKernels<float, float>& backward_kernels();
template const BackwardKernels<float, BFloat16>& backward_kernels();

const char* instruction_set() {
  return choose_kernels<ForwardKernels<float, float>>().name.c_str();
}

}  // namespace fusedlstm::cpu
