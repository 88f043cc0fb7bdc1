// Probes are small kernels with faults to plant. They run on the emulator and, without faults, on a GPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define FUSEDLSTM_EMULATED_DEVICE "emulation/device.h"
#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fusedlstm::cuda::probes {

struct Probe {
  const char* name;
  std::vector<const char*> faults;        // fault 0 is none, fault i + 1 is named faults[i]
  void (*run)(int fault, unsigned seed);  // throws when the result is wrong
};

std::vector<Probe> thread_probes();
std::vector<Probe> tensor_core_probes();
std::vector<Probe> memory_probes();

// An array in the memory of the device, of exactly the size of `values`.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
#ifdef __CUDACC__
    check(cudaMalloc(&data_, size_ * sizeof(T)), "cudaMalloc");
    check(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
#else
    data_ = static_cast<T*>(std::malloc(size_ * sizeof(T)));
    std::memcpy(data_, values.data(), size_ * sizeof(T));
#endif
  }
  DeviceArray(const DeviceArray&) = delete;
#ifdef __CUDACC__
  ~DeviceArray() { cudaFree(data_); }
#else
  ~DeviceArray() { std::free(data_); }
#endif

  T* data() { return data_; }
  std::vector<T> values() const {
    std::vector<T> values(size_);
#ifdef __CUDACC__
    check(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
#else
    std::memcpy(values.data(), data_, size_ * sizeof(T));
#endif
    return values;
  }

 private:
  std::size_t size_;
  T* data_ = nullptr;
};

template <class T>
void expect_equal(const std::vector<T>& actual, const std::vector<T>& expected) {
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (actual[i] != expected[i])
      throw std::runtime_error("wrong result: element " + std::to_string(i) + " is " +
                               std::to_string(actual[i]) + ", must be " + std::to_string(expected[i]));
}

inline std::vector<uint32_t> random_words(std::size_t size, unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<uint32_t> words(size);
  for (uint32_t& word : words) word = engine() >> 8;
  return words;
}

}  // namespace fusedlstm::cuda::probes
