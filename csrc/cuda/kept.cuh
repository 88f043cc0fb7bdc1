// Where the gates of a cell are that the forward pass keeps for the backward pass.
//
// A float32 or float64 layer keeps the activated gates in place of what they were made of, [S, D, 4H].
// A 16-bit layer keeps four values of its own type for each cell, [S, D, H], as ../kept.h writes them.
#pragma once

#include "../kept.h"
#include "cells.cuh"

namespace fusedlstm::cuda {

template <class IO>
struct alignas(8) KeptGates {
  IO i, f, g, o;
};

struct Signs {
  static __device__ __forceinline__ float magnitude(float value) { return std::fabs(value); }
  static __device__ __forceinline__ float with_sign_of(float sign, float value) {
    return std::copysign(value, sign);
  }
  static __device__ __forceinline__ bool is_negative(float value) { return std::signbit(value); }
};

// Keeps the gates of the cells from `unit` on; `row` is the index of their row in a [S, D, H] tensor.
template <class IO, class C, int kUnits>
__device__ __forceinline__ void keep_gates(void* base, int64_t row, int64_t hidden, int64_t unit,
                                           const GateUnits<C, kUnits>& gates) {
  if constexpr (sizeof(IO) == 2) {
    Units<KeptGates<IO>, kUnits> kept;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const auto of_cell =
          as_kept<Signs>(Gates<C>{gates.i.at[u], gates.f.at[u], gates.g.at[u], gates.o.at[u]});
      narrow(of_cell.i, kept.at[u].i), narrow(of_cell.f, kept.at[u].f);
      narrow(of_cell.g, kept.at[u].g), narrow(of_cell.o, kept.at[u].o);
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
      const auto of_cell = from_kept<Signs>(
          Gates<C>{widen(kept.at[u].i), widen(kept.at[u].f), widen(kept.at[u].g), widen(kept.at[u].o)});
      gates.i.at[u] = of_cell.i, gates.f.at[u] = of_cell.f;
      gates.g.at[u] = of_cell.g, gates.o.at[u] = of_cell.o;
    }
    return gates;
  } else {
    return load_gates<kUnits, C>(base, 4 * row + unit, hidden);
  }
}

}  // namespace fusedlstm::cuda
