// One step of an LSTM and its derivative: the only place that holds the equations (csrc/README.md).
//
//   i = sigmoid(pre_i)   f = sigmoid(pre_f)   g = tanh(pre_g)   o = sigmoid(pre_o)
//   c = f * c_prev + i * g                    h = o * tanh(c)
//
// V is a scalar or a SIMD vector; Math supplies sigmoid and tanh for it.
#pragma once

#ifdef __CUDACC__
#define FUSEDLSTM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FUSEDLSTM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fusedlstm {

template <class V>
struct Gates {
  V i, f, g, o;
};

template <class Math, class V>
FUSEDLSTM_HOST_DEVICE Gates<V> activate(const Gates<V>& pre) {
  return {Math::sigmoid(pre.i), Math::sigmoid(pre.f), Math::tanh(pre.g), Math::sigmoid(pre.o)};
}

template <class V>
FUSEDLSTM_HOST_DEVICE V next_cell(const Gates<V>& gates, V c_prev) {
  return gates.f * c_prev + gates.i * gates.g;
}

template <class Math, class V>
FUSEDLSTM_HOST_DEVICE V hidden_state(const Gates<V>& gates, V c) {
  return gates.o * Math::tanh(c);
}

// The derivative of a step: all of its gradient that does not depend on what arrives from later steps.
template <class V>
struct CellDerivative {
  Gates<V> pre;  // of h by the gate before its activation for o, of c for the others
  V c_by_c_prev, h_by_c;
  V h;  // the hidden state again, which the gradient of a projection needs
};

// gates are the activated ones.
template <class Math, class V>
FUSEDLSTM_HOST_DEVICE CellDerivative<V> cell_derivative(const Gates<V>& gates, V c_prev, V c) {
  const V tanh_c = Math::tanh(c);
  const V h = gates.o * tanh_c;
  CellDerivative<V> derivative;
  derivative.pre.i = gates.g * (gates.i - gates.i * gates.i);
  derivative.pre.f = c_prev * (gates.f - gates.f * gates.f);
  derivative.pre.g = gates.i - gates.i * gates.g * gates.g;
  derivative.pre.o = tanh_c * (gates.o - gates.o * gates.o);
  derivative.c_by_c_prev = gates.f;
  derivative.h_by_c = gates.o - h * tanh_c;  // o * (1 - tanh(c)^2)
  derivative.h = h;
  return derivative;
}

template <class V>
struct CellGradient {
  Gates<V> pre;  // with respect to the gates before their activation
  V c_prev;
};

// grad_h and grad_c arrive from this step's output and from the next step.
template <class V>
FUSEDLSTM_HOST_DEVICE CellGradient<V> cell_gradient(const CellDerivative<V>& by, V grad_h, V grad_c) {
  const V dc = grad_c + grad_h * by.h_by_c;
  return {{dc * by.pre.i, dc * by.pre.f, dc * by.pre.g, grad_h * by.pre.o}, dc * by.c_by_c_prev};
}

}  // namespace fusedlstm
