// How a 16-bit layer writes the gates that it keeps for the backward pass: the only place with these
// formulas.
//
// A 16-bit type rounds a value near 1 to a multiple of 2^-8 or 2^-11, and that is not enough: the derivative
// has 1 - f, 1 - g^2 and the like as factors, and multiplies the f of a long memory in each step. So a gate
// above 1/2 is kept as its distance from 1, which the type rounds to 2^-9 or 2^-12 of the distance.
//
// V is a float or a SIMD vector of them, which the caller rounds to the type; Signs supplies what deals with
// sign bits: magnitude, with_sign_of and is_negative.
#pragma once

#include "cell.h"

namespace fusedlstm {

// A sigmoid's distance from 1 has the sign set. The scale uses the range of float16, to 2^-40.
constexpr float kSigmoidScale = 1 << 15;
template <class Signs, class V>
FUSEDLSTM_HOST_DEVICE V keep_sigmoid(V gate) {
  // A fast reciprocal may exceed 1, so the sign is set rather than computed.
  return kSigmoidScale * (gate > 0.5f ? -Signs::magnitude(1.0f - gate) : gate);
}
template <class Signs, class V>
FUSEDLSTM_HOST_DEVICE V kept_sigmoid(V kept) {
  const V gate = kept * (1 / kSigmoidScale);
  return Signs::is_negative(gate) ? 1.0f + gate : gate;  // 1 itself is kept as -0
}

// A tanh has a sign of its own. Its distance from 1, or of its negative, is kept as a number from 1 on.
constexpr float kTanhScale = 1 << 16;
template <class Signs, class V>
FUSEDLSTM_HOST_DEVICE V keep_tanh(V gate) {
  const V size = Signs::magnitude(gate);
  return size > 0.5f ? Signs::with_sign_of(gate, 1.0f + kTanhScale * Signs::magnitude(1.0f - size)) : gate;
}
template <class Signs, class V>
FUSEDLSTM_HOST_DEVICE V kept_tanh(V kept) {
  const V size = Signs::magnitude(kept);
  return size >= 1.0f ? Signs::with_sign_of(kept, 1.0f - (size - 1.0f) * (1 / kTanhScale)) : kept;
}

template <class Signs, class V>
FUSEDLSTM_HOST_DEVICE Gates<V> as_kept(const Gates<V>& gates) {
  return {keep_sigmoid<Signs>(gates.i), keep_sigmoid<Signs>(gates.f), keep_tanh<Signs>(gates.g),
          keep_sigmoid<Signs>(gates.o)};
}
template <class Signs, class V>
FUSEDLSTM_HOST_DEVICE Gates<V> from_kept(const Gates<V>& kept) {
  return {kept_sigmoid<Signs>(kept.i), kept_sigmoid<Signs>(kept.f), kept_tanh<Signs>(kept.g),
          kept_sigmoid<Signs>(kept.o)};
}

}  // namespace fusedlstm
