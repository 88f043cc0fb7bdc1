// The gates of a cell as the forward pass keeps them for the backward pass.
//
// A float32 or float64 layer keeps the activated gates in place of what they were made of, [S, D, 4H].
// A 16-bit layer keeps four values of its own type for each cell, [S, D, H]. It rounds a value near 1 to a
// multiple of 2^-8 or 2^-11, and that is not enough: the derivative has 1 - f, 1 - g^2 and the like as
// factors, and multiplies the f of a long memory in each step. So a gate above 1/2 is kept as its distance
// from 1, which the type rounds to 2^-9 or 2^-12 of the distance.
#pragma once

#include "cells.cuh"

namespace fusedlstm::cuda {

template <class IO>
struct alignas(8) KeptGates {
  IO i, f, g, o;
};

// A sigmoid's distance from 1 has the sign set. The scale uses the range of float16, to 2^-40.
constexpr float kSigmoidScale = 1 << 15;
template <class IO>
__device__ __forceinline__ void keep_sigmoid(float gate, IO& kept) {
  // The fast reciprocal may exceed 1, so the sign is set rather than computed.
  narrow(kSigmoidScale * (gate > 0.5f ? -std::fabs(1 - gate) : gate), kept);
}
template <class IO>
__device__ __forceinline__ float kept_sigmoid(IO kept) {
  const float gate = widen(kept) * (1 / kSigmoidScale);
  return std::signbit(gate) ? 1 + gate : gate;  // 1 itself is kept as -0
}

// A tanh has a sign of its own. Its distance from 1, or of its negative, is kept as a number from 1 on.
constexpr float kTanhScale = 1 << 16;
template <class IO>
__device__ __forceinline__ void keep_tanh(float gate, IO& kept) {
  const float size = std::fabs(gate);
  narrow(size > 0.5f ? std::copysign(1 + kTanhScale * std::fabs(1 - size), gate) : gate, kept);
}
template <class IO>
__device__ __forceinline__ float kept_tanh(IO kept) {
  const float gate = widen(kept), size = std::fabs(gate);
  return size >= 1 ? std::copysign(1 - (size - 1) * (1 / kTanhScale), gate) : gate;
}

// Keeps the gates of the cells from `unit` on; `row` is the index of their row in a [S, D, H] tensor.
template <class IO, class C, int kUnits>
__device__ __forceinline__ void keep_gates(void* base, int64_t row, int64_t hidden, int64_t unit,
                                           const GateUnits<C, kUnits>& gates) {
  if constexpr (sizeof(IO) == 2) {
    Units<KeptGates<IO>, kUnits> kept;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      keep_sigmoid(gates.i.at[u], kept.at[u].i);
      keep_sigmoid(gates.f.at[u], kept.at[u].f);
      keep_tanh(gates.g.at[u], kept.at[u].g);
      keep_sigmoid(gates.o.at[u], kept.at[u].o);
    }
    store(base, row + unit, kept);
  } else {
    store_gates(base, 4 * row + unit, hidden, gates);
  }
}
template <class IO, class C, int kUnits>
__device__ __forceinline__ GateUnits<C, kUnits> kept_gates(const void* base, int64_t row, int64_t hidden,
                                                           int64_t unit) {
  if constexpr (sizeof(IO) == 2) {
    const auto kept = load<kUnits, KeptGates<IO>>(base, row + unit);
    GateUnits<C, kUnits> gates;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      gates.i.at[u] = kept_sigmoid(kept.at[u].i), gates.f.at[u] = kept_sigmoid(kept.at[u].f);
      gates.g.at[u] = kept_tanh(kept.at[u].g), gates.o.at[u] = kept_sigmoid(kept.at[u].o);
    }
    return gates;
  } else {
    return load_gates<kUnits, C>(base, 4 * row + unit, hidden);
  }
}

}  // namespace fusedlstm::cuda
