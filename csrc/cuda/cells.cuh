// What the kernels share: types, mathematics, vectors of units, who works on what.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>

#include "../cell.h"
#include "../plan.h"
#include "device.cuh"
#include "launch.h"
#include "sizes.h"

namespace fusedlstm::cuda {

// Blocks have at most so many threads, so many blocks run on a multiprocessor at once: 65,536 registers /
// 1024 threads leave each the 64 that the plan assumes.
constexpr int kMaxThreads = 256, kMinBlocks = 4;

template <class IO>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

__device__ __forceinline__ float widen(Half value) {
  return __half2float(value);
}
__device__ __forceinline__ float widen(BFloat16 value) {
  return __bfloat162float(value);
}
__device__ __forceinline__ float widen(float value) {
  return value;
}
__device__ __forceinline__ double widen(double value) {
  return value;
}

__device__ __forceinline__ void narrow(float value, Half& out) {
  out = __float2half_rn(value);
}
__device__ __forceinline__ void narrow(float value, BFloat16& out) {
  out = __float2bfloat16_rn(value);
}
__device__ __forceinline__ void narrow(float value, float& out) {
  out = value;
}
__device__ __forceinline__ void narrow(double value, double& out) {
  out = value;
}

struct AccurateMath {
  template <class V>
  static __device__ __forceinline__ V sigmoid(V x) {
    return V(1) / (V(1) + std::exp(-x));
  }
  template <class V>
  static __device__ __forceinline__ V tanh(V x) {
    return std::tanh(x);
  }
};

// To about 1e-6 of the value, without a division or a branch: for layers whose products round to 2^-11 or
// more.
struct FastMath {
  static __device__ __forceinline__ float sigmoid(float x) {
    return reciprocal_fast(1 + exp2_fast(-kLog2E * x));
  }
  static __device__ __forceinline__ float tanh(float x) {
    const float far = 1 - 2 * reciprocal_fast(1 + exp2_fast(2 * kLog2E * x));
    // Near zero the difference cancels. The series' next term is 17/315 x^7, 2e-7 of the value at 1/8.
    const float square = x * x, near = x * (1 + square * (2.0f / 15 * square - 1.0f / 3));
    return std::fabs(x) < 0.125f ? near : far;
  }

 private:
  static constexpr float kLog2E = 1.44269504f;
};

// Values of neighbouring units, moved in one access.
template <class V, int kUnits>
struct alignas(sizeof(V) * kUnits) Units {
  V at[kUnits];
};

template <int kUnits, class V>
__device__ __forceinline__ Units<V, kUnits> load(const void* base, int64_t offset) {
  return *reinterpret_cast<const Units<V, kUnits>*>(static_cast<const V*>(base) + offset);
}
template <class IO, class C, int kUnits>
__device__ __forceinline__ void add(Units<C, kUnits>& sum, const void* base, int64_t offset) {
  const auto part = load<kUnits, IO>(base, offset);
#pragma unroll
  for (int u = 0; u < kUnits; ++u) sum.at[u] += widen(part.at[u]);
}
template <class V, int kUnits>
__device__ __forceinline__ void store(void* base, int64_t offset, const Units<V, kUnits>& units) {
  *reinterpret_cast<Units<V, kUnits>*>(static_cast<V*>(base) + offset) = units;
}

// The four gates of neighbouring units; `offset` is that of gate i.
template <class V, int kUnits>
struct GateUnits {
  Units<V, kUnits> i, f, g, o;
};
template <int kUnits, class V>
__device__ __forceinline__ GateUnits<V, kUnits> load_gates(const void* base, int64_t offset, int64_t hidden) {
  return {load<kUnits, V>(base, offset), load<kUnits, V>(base, offset + hidden),
          load<kUnits, V>(base, offset + 2 * hidden), load<kUnits, V>(base, offset + 3 * hidden)};
}
template <class C, int kUnits>
__device__ __forceinline__ void add_gates(GateUnits<C, kUnits>& sum, const void* base, int64_t offset,
                                          int64_t hidden) {
  add<C>(sum.i, base, offset);
  add<C>(sum.f, base, offset + hidden);
  add<C>(sum.g, base, offset + 2 * hidden);
  add<C>(sum.o, base, offset + 3 * hidden);
}
template <class V, int kUnits>
__device__ __forceinline__ void store_gates(void* base, int64_t offset, int64_t hidden,
                                            const GateUnits<V, kUnits>& gates) {
  store(base, offset, gates.i);
  store(base, offset + hidden, gates.f);
  store(base, offset + 2 * hidden, gates.g);
  store(base, offset + 3 * hidden, gates.o);
}

// Place of a thread's first unit in a step.
struct Place {
  int t;                     // step of the input
  unsigned row;              // of a [D, N, ...] tensor
  unsigned n, d, unit;       // row of the batch, direction, unit
  bool active : 1;           // whether the row takes part in this step
  bool first : 1, last : 1;  // whether this is the first, the last step that the row takes in this direction
  bool enters : 1;  // whether it is the first of a segment, in this direction, and so starts from zero

  // Row of a [T, N, D, ...] tensor at step `time` of the input: one product of 32 bits by 32.
  __device__ __forceinline__ int64_t sequence_row(const Sizes& size, int64_t time) const {
    const auto directions = static_cast<unsigned>(size.directions);
    const uint64_t rows = static_cast<unsigned>(size.batch) * directions;
    return static_cast<int64_t>(static_cast<unsigned>(time) * rows + n * directions + d);
  }
};

__device__ __forceinline__ Place place(const Sizes& size, int64_t step, unsigned d, unsigned n,
                                       unsigned unit) {
  const auto steps = static_cast<int>(size.steps);
  Place at;
  at.row = d * static_cast<unsigned>(size.batch) + n, at.n = n, at.d = d, at.unit = unit;
  at.t = at.d ? steps - 1 - static_cast<int>(step) : static_cast<int>(step);
  // A length out of range is cut to it: to refuse it would take a wait for the device.
  int length = steps;
  if (size.lengths) {
    const int64_t given = size.lengths[at.n];
    length = given < 0 ? 0 : given > steps ? steps : static_cast<int>(given);
  }
  at.active = at.t >= 0 && at.t < length;
  at.first = at.t == (at.d ? length - 1 : 0);
  at.last = at.t == (at.d ? 0 : length - 1);
  const int begin = at.d ? at.t + 1 : at.t;  // the reverse direction comes from the segment that begins there
  at.enters = at.active && size.resets && begin < length && size.resets[begin * size.batch + at.n];
  return at;
}

__device__ __forceinline__ Place place(const Sizes& size, int64_t step, unsigned row, unsigned unit) {
  const auto batch = static_cast<unsigned>(size.batch);
  return place(size, step, row / batch, row % batch, unit);
}

// A thread for each of `items`, or none.
__device__ __forceinline__ unsigned item_index() {
  return block_index() * block_size() + thread_index();
}

// Place of the units that this thread updates in a step of all cells; false for a thread that has none.
template <int kUnits>
__device__ __forceinline__ bool find_cells(const Sizes& size, int64_t step, Place& at) {
  const auto vectors = static_cast<unsigned>(size.hidden / kUnits);
  const unsigned item = item_index();
  if (item >= size.directions * size.batch * vectors) return false;
  at = place(size, step, item / vectors, item % vectors * kUnits);
  return true;
}

inline Launch launch_for(int64_t items, int threads, Stream stream) {
  return {.blocks = static_cast<unsigned>((items + threads - 1) / threads),
          .threads = static_cast<unsigned>(threads),
          .stream = stream};
}

// Threads that share any number of items among them.
inline Launch launch_for_all(int64_t items, Stream stream) {
  constexpr int kThreads = 256, kMaxBlocks = 65'536;
  return launch_for(std::min<int64_t>(items, kThreads * kMaxBlocks), kThreads, stream);
}

inline bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

// Calls f with a value of the C++ type that `io` names.
template <class F>
void with_type(Type io, F&& f) {
  switch (io) {
    case Type::float32:
      return f(float{});
    case Type::float64:
      return f(double{});
    case Type::float16:
      return f(Half{});
    case Type::bfloat16:
      return f(BFloat16{});
  }
}

// Calls f<IO, units> with the plan's units, or with one where a tensor of the caller's is not aligned for
// more.
template <class F>
void with_units(Type io, int units, F&& f) {
  with_type(io, [&](auto value) {
    using IO = decltype(value);
    constexpr int kWidest = 16 / sizeof(typename Compute<IO>::type);
    if (units == kWidest) {
      f.template operator()<IO, kWidest>();
    } else {
      f.template operator()<IO, 1>();
    }
  });
}

}  // namespace fusedlstm::cuda
