// The 16-bit types of CUDA and the conversions that kernels use, with CUDA's names and rounding.
#pragma once

#include <bit>
#include <cstdint>

namespace fusedlstm::cuda {

struct Half {
  _Float16 value;
};

struct BFloat16 {
  uint16_t bits;
};

inline float __half2float(Half half) {  // g++ 12 would call a function that is many times slower
  const uint32_t bits = std::bit_cast<uint16_t>(half), sign = (bits & 0x8000) << 16,
                 magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | magnitude << 13);
  if (magnitude >= 0x0400) return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  const float small = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -small : small;
}
inline Half __float2half_rn(float value) {
  if (value != value) return std::bit_cast<Half>(uint16_t{0x7fff});  // the one NaN that the hardware makes
  return {static_cast<_Float16>(value)};
}

inline float __bfloat162float(BFloat16 value) {
  return std::bit_cast<float>(uint32_t{value.bits} << 16);
}
inline BFloat16 __float2bfloat16_rn(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return {0x7fff};
  const uint32_t half_less_a_tie_to_even = 0x7fff + (bits >> 16 & 1);
  return {static_cast<uint16_t>((bits + half_less_a_tie_to_even) >> 16)};
}

}  // namespace fusedlstm::cuda
