// The tensor cores: m16n8k16 of 16-bit types and m16n8k8 of TF32, in the lane layouts of the PTX ISA.
#include <bit>
#include <cstring>

#include "emulation/emulator.h"
#include "emulation/numbers.h"

namespace fusedlstm::emulation {
namespace {

struct Fragments {
  float (*d)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
};

// Elements of a 32-bit register, the one with the lower column first.
template <Operand type>
struct Register {
  static constexpr int kElements = 2;
  static float element(uint32_t word, int i) {
    const auto bits = static_cast<uint16_t>(word >> 16 * i);
    if constexpr (type == Operand::kHalf)
      return cuda::__half2float(std::bit_cast<cuda::Half>(bits));
    else
      return cuda::__bfloat162float({bits});
  }
};
template <>
struct Register<Operand::kTf32> {
  static constexpr int kElements = 1;
  static float element(uint32_t word, int) {
    return std::bit_cast<float>(word & 0xffffe000u);  // 10 bits of the mantissa, no rounding
  }
};

template <Operand type>
void multiply(Operands& lanes) {
  constexpr int kElements = Register<type>::kElements;
  constexpr int K = 8 * kElements;
  float a[16][K], b[K][8], d[16][8];
  const auto fragments = [&](int lane) { return *static_cast<const Fragments*>(lanes[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, member = lane % 4;
    const Fragments from = fragments(lane);
    for (int i = 0; i < kElements; ++i) {
      const int k = member * kElements + i;
      for (int half = 0; half < 2; ++half) {
        a[group][k + half * K / 2] = Register<type>::element((*from.a)[2 * half], i);
        a[group + 8][k + half * K / 2] = Register<type>::element((*from.a)[2 * half + 1], i);
        b[k + half * K / 2][group] = Register<type>::element((*from.b)[half], i);
      }
    }
    for (int i = 0; i < 4; ++i) d[group + i / 2 * 8][member * 2 + i % 2] = (*from.d)[i];
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < K; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) (*fragments(lane).d)[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

}  // namespace

// To nearest, halves away from zero, as cvt.rna.tf32.f32 does; a NaN becomes the one that it makes.
float round_to_tf32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (value != value) return std::bit_cast<float>(0x7fffffffu);
  if ((bits & 0x7f800000u) == 0x7f800000u) return value;
  return std::bit_cast<float>((bits + 0x1000u) & 0xffffe000u);
}

void mma(const char* name, Operand type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Fragments own{&d, &a, &b};
  warp_collective(name, &own,
                  type == Operand::kHalf       ? multiply<Operand::kHalf>
                  : type == Operand::kBFloat16 ? multiply<Operand::kBFloat16>
                                               : multiply<Operand::kTf32>);
}

}  // namespace fusedlstm::emulation
