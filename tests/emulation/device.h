// Host twins of the wrappers in csrc/cuda/device.cuh, with the same names and signatures. A source that names
// this header in FUSEDLSTM_EMULATED_DEVICE gets them, and launch(), in their place.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "emulation/emulator.h"
#include "emulation/launch.h"
#include "emulation/numbers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace fusedlstm::cuda {

inline unsigned thread_index() {
  return emulation::position().thread;
}
inline unsigned block_index() {
  return emulation::position().in->block;
}
inline unsigned block_size() {
  return emulation::position().in->block_size;
}
inline unsigned grid_size() {
  return emulation::position().in->grid_size;
}

template <class Storage>
Storage& shared_memory() {
  static_assert(alignof(Storage) <= 16);
  return *static_cast<Storage*>(emulation::shared_memory(sizeof(Storage)));
}

inline void block_barrier() {
  emulation::block_barrier();
}
inline void warp_barrier() {
  emulation::warp_barrier();
}

// What one lane brings to a shuffle and takes from it.
template <class T>
struct Shuffled {
  T value, result;
  int argument;
};
template <class T>
T shuffle(T value, int lane) {
  Shuffled<T> own{value, value, lane};
  emulation::warp_collective("shuffle", &own, [](emulation::Operands& lanes) {
    for (void* lane : lanes) {
      auto& to = *static_cast<Shuffled<T>*>(lane);
      to.result = static_cast<Shuffled<T>*>(lanes[to.argument & 31])->value;
    }
  });
  return own.result;
}
template <class T>
T shuffle_xor(T value, int mask) {
  Shuffled<T> own{value, value, mask};
  emulation::warp_collective("shuffle_xor", &own, [](emulation::Operands& lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      auto& to = *static_cast<Shuffled<T>*>(lanes[lane]);
      const int from = lane ^ to.argument;
      if (from >= 0 && from < 32) to.result = static_cast<Shuffled<T>*>(lanes[from])->value;
    }
  });
  return own.result;
}

inline void mma_half(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::mma("mma_half", emulation::Operand::kHalf, d, a, b);
}
inline void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::mma("mma_bfloat16", emulation::Operand::kBFloat16, d, a, b);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::mma("mma_tf32", emulation::Operand::kTf32, d, a, b);
}

inline float round_to_tf32(float value) {
  return emulation::round_to_tf32(value);
}

inline uint32_t pack_half(float low, float high) {
  return std::bit_cast<uint16_t>(__float2half_rn(low)) |
         uint32_t{std::bit_cast<uint16_t>(__float2half_rn(high))} << 16;
}
inline uint32_t pack_bfloat16(float low, float high) {
  return __float2bfloat16_rn(low).bits | uint32_t{__float2bfloat16_rn(high).bits} << 16;
}
inline uint32_t bits_of(float value) {
  return std::bit_cast<uint32_t>(value);
}

// "ftz": a subnormal operand or result is a zero of its sign.
inline float flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}
inline float exp2_fast(float x) {
  return flushed(std::exp2(flushed(x)));
}
inline float reciprocal_fast(float x) {
  return flushed(1 / flushed(x));
}

// The scheduler finds a wait without end long before.
inline void trap_on_timeout() {}

inline uint32_t load_relaxed(const uint32_t* address) {
  uint32_t value;
  emulation::load(address, &value, 1);
  return value;
}
inline uint4 load_relaxed(const uint4* address) {
  uint32_t words[4];
  emulation::load(reinterpret_cast<const uint32_t*>(address), words, 4);
  return {words[0], words[1], words[2], words[3]};
}
inline void load_relaxed_if(bool condition, const uint4* address, uint4& value) {
  if (condition) value = load_relaxed(address);
}
inline uint32_t load_acquire(const uint32_t* address) {
  return load_relaxed(address);
}
inline void store_relaxed(uint32_t* address, uint32_t value) {
  emulation::store(address, &value, 1);
}
inline void store_relaxed(uint4* address, uint4 value) {
  const uint32_t words[4] = {value.x, value.y, value.z, value.w};
  emulation::store(reinterpret_cast<uint32_t*>(address), words, 4);
}
inline void store_release(uint32_t* address, uint32_t value) {
  emulation::store_release(address, value);
}
inline void fence() {
  emulation::fence();
}

inline void copy_async(void* shared, const void* global) {
  emulation::copy_async(shared, global);
}
inline void copy_async_commit() {
  emulation::copy_async_commit();
}
template <int Pending>
void copy_async_wait() {
  static_assert(Pending >= 0);
  emulation::copy_async_wait(Pending);
}

}  // namespace fusedlstm::cuda
