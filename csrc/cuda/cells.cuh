// What the kernels share: types, mathematics, vectors of units, coordinates of a cell, launches.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../cell.h"
#include "device.cuh"
#include "launch.h"
#include "plan.h"
#include "sizes.h"

namespace fusedlstm::cuda {

template <class IO>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// Of a stepwise kernel: its types, the units of a thread, and the blocks on a multiprocessor, which leave
// each thread kStepwiseRegisters.
template <class IO_, int kUnits_>
struct StepwiseTraits {
  using IO = IO_;
  using C = typename Compute<IO>::type;
  static constexpr int kUnits = kUnits_, kBlocks = kMaxRegisters / (kStepwiseRegisters * kStepwiseThreads);
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

// Two neighbouring values of a 16-bit type in a word.
template <class IO>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<IO, Half>) {
    return pack_half(low, high);
  } else {
    return pack_bfloat16(low, high);
  }
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

// Accurate to about 1e-6 of the value, without a division or a branch: for layers whose products round to
// 2^-11 or more.
struct FastMath {
  static __device__ __forceinline__ float sigmoid(float x) { return activate(x, false); }
  static __device__ __forceinline__ float tanh(float x) { return activate(x, true); }
  // sigmoid(x), or tanh(x) = 1 - 2 sigmoid(-2x), by the same instructions: lanes of a warp may differ.
  static __device__ __forceinline__ float activate(float x, bool is_tanh) {
    const float part = reciprocal_fast(1 + exp2_fast((is_tanh ? 2 * kLog2E : -kLog2E) * x));
    // Near zero the difference cancels, so the Taylor series is used there. Its next term is 17/315 x^7,
    // 2e-7 of the value at 1/8.
    const float square = x * x, near = x * (1 + square * (2.0f / 15 * square - 1.0f / 3));
    return !is_tanh ? part : std::fabs(x) < 0.125f ? near : 1 - 2 * part;
  }

 private:
  static constexpr float kLog2E = 1.44269504f;
};

// Values of neighbouring units, moved in accesses that are as wide as a thread's can be.
template <class V, int kUnits>
struct alignas(std::min<std::size_t>(sizeof(V) * kUnits, kAccessBytes)) Units {
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
template <class IO, int kUnits>
__device__ __forceinline__ auto widen(const Units<IO, kUnits>& units) {
  Units<typename Compute<IO>::type, kUnits> wide;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) wide.at[u] = widen(units.at[u]);
  return wide;
}
template <class IO, class C, int kUnits>
__device__ __forceinline__ Units<IO, kUnits> narrow(const Units<C, kUnits>& units) {
  Units<IO, kUnits> out;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) narrow(units.at[u], out.at[u]);
  return out;
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

// Coordinates of a cell in a step, of the first where a thread updates several units.
struct Coordinates {
  int t;                // step of the input
  unsigned row;         // of a [D, N, ...] tensor
  unsigned n, d, unit;  // row of the batch, direction, unit
  bool active : 1;      // the row takes part in this step
  bool first : 1;       // this is the first step that the row takes in this direction
  bool last : 1;        // this is the last one
  bool enters : 1;      // this is the first step of a segment in this direction: the state before it is zero
  bool has_entry : 1;   // sequence tensors have memory for it: active, or of a padded batch
  bool continues : 1;   // the next step takes the state after this one, and so a gradient comes back from it

  // Entry of a [S, ...] tensor at step `time` of the input.
  __device__ __forceinline__ int64_t entry(const KernelSizes& size, int64_t time) const {
    if (size.offsets) return size.offsets[time] + n;
    return static_cast<int64_t>(uint64_t{static_cast<unsigned>(time)} * static_cast<unsigned>(size.batch) +
                                n);
  }
  // Row of a [S, D, ...] tensor: one product of 32 bits by 32.
  __device__ __forceinline__ int64_t sequence_row(const KernelSizes& size, int64_t time) const {
    const auto directions = static_cast<unsigned>(size.directions);
    if (size.offsets) return (size.offsets[time] + n) * directions + d;
    const uint64_t rows = static_cast<unsigned>(size.batch) * directions;
    return static_cast<int64_t>(static_cast<unsigned>(time) * rows + n * directions + d);
  }
};

__device__ __forceinline__ Coordinates cell_at(const KernelSizes& size, int64_t step, unsigned d, unsigned n,
                                               unsigned unit) {
  const auto steps = static_cast<int>(size.steps);
  Coordinates at;
  at.row = d * static_cast<unsigned>(size.batch) + n, at.n = n, at.d = d, at.unit = unit;
  at.t = at.d ? steps - 1 - static_cast<int>(step) : static_cast<int>(step);
  // A length out of range is clamped: to refuse it, the host would have to synchronise with the device.
  int length = steps;
  if (size.lengths) {
    const int64_t given = size.lengths[at.n];
    length = given < 0 ? 0 : given > steps ? steps : static_cast<int>(given);
  }
  at.active = at.t >= 0 && at.t < length;
  at.first = at.t == (at.d ? length - 1 : 0);
  at.last = at.t == (at.d ? 0 : length - 1);
  at.has_entry = at.active || !size.offsets;
  const int begin = at.d ? at.t + 1 : at.t;  // reverse: the step before was in the segment beginning there
  at.enters = at.active && size.resets && begin < length && size.resets[begin * size.batch + at.n];
  const int end = at.d ? at.t : at.t + 1;  // where the next step's segment begins, if it is another
  at.continues = at.active && !at.last && !(size.resets && size.resets[end * size.batch + at.n]);
  return at;
}

__device__ __forceinline__ Coordinates cell_at(const KernelSizes& size, int64_t step, unsigned row,
                                               unsigned unit) {
  const auto batch = static_cast<unsigned>(size.batch);
  return cell_at(size, step, row / batch, row % batch, unit);
}

__device__ __forceinline__ unsigned global_thread_index() {
  return block_index() * block_size() + thread_index();
}

// The cells that this thread updates in a step: kUnits units of a row; false for a thread that has none.
template <int kUnits>
__device__ __forceinline__ bool find_cells(const KernelSizes& size, int64_t step, Coordinates& at) {
  const auto vectors = static_cast<unsigned>(size.hidden / kUnits);
  const unsigned vector = global_thread_index();
  if (vector >= size.directions * size.batch * vectors) return false;
  at = cell_at(size, step, vector / vectors, vector % vectors * kUnits);
  return true;
}

// A thread for each element.
inline Launch launch_for(int64_t elements, int threads, Stream stream) {
  return {.blocks = static_cast<unsigned>(ceil_div(elements, threads)),
          .threads = static_cast<unsigned>(threads),
          .stream = stream};
}

// A thread takes every (threads of the grid)-th element.
inline Launch launch_strided(int64_t elements, Stream stream) {
  constexpr int kBlockThreads = 256, kMaxBlocks = 65'536;
  return launch_for(std::min<int64_t>(elements, kBlockThreads * kMaxBlocks), kBlockThreads, stream);
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

// Calls f<StepwiseTraits> for `units`: as many as fit one access, or one.
template <class F>
void with_units(Type io, int units, F&& f) {
  with_type(io, [&]<class IO>(IO) {
    constexpr int kWidest = kAccessBytes / sizeof(typename Compute<IO>::type);
    if (units == kWidest) {
      f.template operator()<StepwiseTraits<IO, kWidest>>();
    } else {
      f.template operator()<StepwiseTraits<IO, 1>>();
    }
  });
}

// A thread for each Traits::kUnits units of a step.
template <class Traits>
Launch launch_for_cells(const KernelSizes& size, const StepwisePlan& plan, Stream stream) {
  return launch_for(size.directions * size.batch * (size.hidden / Traits::kUnits), plan.threads, stream);
}

}  // namespace fusedlstm::cuda
