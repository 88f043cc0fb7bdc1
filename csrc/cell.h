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

template <class V>
struct CellGradient {
  Gates<V> pre;  // with respect to the gates before their activation
  V c_prev;
  V h;  // the hidden state again, which the gradient of a projection needs
};

// gates are the activated ones; grad_h and grad_c arrive from this step's output and from the next step.
template <class Math, class V>
FUSEDLSTM_HOST_DEVICE CellGradient<V> cell_gradient(const Gates<V>& gates, V c_prev, V c, V grad_h,
                                                    V grad_c) {
  const V tanh_c = Math::tanh(c);
  const V h = gates.o * tanh_c;
  const V dc = grad_c + grad_h * (gates.o - h * tanh_c);  // o * (1 - tanh(c)^2)
  CellGradient<V> grad;
  grad.pre.i = dc * gates.g * (gates.i - gates.i * gates.i);
  grad.pre.f = dc * c_prev * (gates.f - gates.f * gates.f);
  grad.pre.g = dc * (gates.i - gates.i * gates.g * gates.g);
  grad.pre.o = grad_h * tanh_c * (gates.o - gates.o * gates.o);
  grad.c_prev = dc * gates.f;
  grad.h = h;
  return grad;
}

}  // namespace fusedlstm
