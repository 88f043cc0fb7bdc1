// 16-bit and TF32 matrices in the registers of a warp.
#include <bit>
#include <cmath>
#include <limits>

#include "emulation/probes.h"

namespace fusedlstm::cuda::probes {
namespace {

namespace product {

enum Fault { kNone, kSwappedRegisters, kWrongLane, kWrongResultLane, kSwappedHalves };
enum class Type { kHalf, kBFloat16, kTf32 };

template <Type type>
using Bits = std::conditional_t<type == Type::kTf32, uint32_t, uint16_t>;
template <Type type>
constexpr int kDepth = type == Type::kTf32 ? 8 : 16;

// The register with the elements at `first` and, of 16-bit types, `stride` further on.
__device__ inline uint32_t pack(const uint32_t* first, int, bool) {
  return *first;
}
__device__ inline uint32_t pack(const uint16_t* first, int stride, bool swapped) {
  return static_cast<uint32_t>(first[swapped ? stride : 0]) |
         static_cast<uint32_t>(first[swapped ? 0 : stride]) << 16;
}

// d = a b, all in row order.
template <Type type>
__global__ void kernel(const Bits<type>* a, const Bits<type>* b, float* d, int fault) {
  constexpr int K = kDepth<type>, kPacked = K / 8;
  const int lane = static_cast<int>(thread_index()), group = lane / 4, k = lane % 4 * kPacked;
  const int a_group = fault == kWrongLane ? group ^ 1 : group;
  uint32_t a_words[4], b_words[2];
  for (int i = 0; i < 4; ++i) {
    const int from = fault == kSwappedRegisters ? i / 2 + i % 2 * 2 : i;
    a_words[i] = pack(a + (a_group + from % 2 * 8) * K + k + from / 2 * K / 2, 1, false);
  }
  for (int i = 0; i < 2; ++i) b_words[i] = pack(b + (k + i * K / 2) * 8 + group, 8, fault == kSwappedHalves);
  float sums[4] = {};
  if constexpr (type == Type::kHalf) mma_half(sums, a_words, b_words);
  if constexpr (type == Type::kBFloat16) mma_bfloat16(sums, a_words, b_words);
  if constexpr (type == Type::kTf32) mma_tf32(sums, a_words, b_words);
  const int out = fault == kWrongResultLane ? lane ^ 4 : lane;
  for (int i = 0; i < 4; ++i) d[(out / 4 + i / 2 * 8) * 8 + out % 4 * 2 + i % 2] = sums[i];
}

template <Type type>
Bits<type> to_bits(float value) {
  if constexpr (type == Type::kHalf)
    return std::bit_cast<uint16_t>(__float2half_rn(value));
  else if constexpr (type == Type::kBFloat16)
    return std::bit_cast<uint16_t>(__float2bfloat16_rn(value));
  else
    return std::bit_cast<uint32_t>(value) | 0x1fffu;  // bits that the tensor cores must ignore
}

template <Type type>
void run(int fault, unsigned seed) {
  constexpr int K = kDepth<type>;
  const auto words = random_words(16 * K + K * 8, seed);
  // Small integers: every format holds them and all sums are exact.
  const auto number = [&](int i) { return static_cast<float>(words[i] % 31) - 15; };
  std::vector<Bits<type>> a, b;
  for (int i = 0; i < 16 * K; ++i) a.push_back(to_bits<type>(number(i)));
  for (int i = 0; i < K * 8; ++i) b.push_back(to_bits<type>(number(16 * K + i)));
  std::vector<float> expected(16 * 8);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      for (int k = 0; k < K; ++k)
        expected[row * 8 + column] += number(row * K + k) * number(16 * K + k * 8 + column);
  DeviceArray<Bits<type>> device_a(a), device_b(b);
  DeviceArray<float> d(std::vector<float>(16 * 8));
  launch("product", kernel<type>, {1, 32, nullptr}, device_a.data(), device_b.data(), d.data(), fault);
  expect_equal(d.values(), expected);
}

}  // namespace product

namespace rounding {

enum Fault { kNone, kTruncated, kSwappedHalves };

// Each value by itself, and in a word of `pairs` with its double.
__global__ void kernel(const float* in, float* out, uint32_t* pairs, int fault) {
  const unsigned i = thread_index();
  const float value = in[i];
  const float low = fault == kSwappedHalves ? 2 * value : value,
              high = fault == kSwappedHalves ? value : 2 * value;
  out[2 * i] = __half2float(__float2half_rn(value));
  out[2 * i + 1] = __bfloat162float(__float2bfloat16_rn(fault == kTruncated ? value - value / 512 : value));
  pairs[2 * i] = pack_half(low, high);
  pairs[2 * i + 1] = pack_bfloat16(low, high);
}

// The nearest number with `bits` bits, no finer than `finest`, ties to even.
float nearest(float value, int bits, double finest, double largest) {
  int exponent;
  std::frexp(value, &exponent);
  const double unit = std::fmax(std::ldexp(1.0, exponent - bits), finest);
  const double rounded = std::nearbyint(value / unit) * unit;
  return std::fabs(rounded) > largest ? std::copysign(std::numeric_limits<float>::infinity(), value)
                                      : static_cast<float>(rounded);
}

void run(int fault, unsigned seed) {
  std::vector<float> in{1 + 1.0f / 2048, 1 + 3.0f / 2048, 1 + 1.0f / 256, 65519,
                        65520,           3.4e38f,         1e-7f,          3e-8f};
  for (uint32_t word : random_words(120, seed))
    in.push_back(std::ldexp(word - 8e6f, static_cast<int>(word % 48) - 40));
  std::vector<float> expected;
  for (float value : in) {
    expected.push_back(nearest(value, 11, 0x1p-24, 65504));
    expected.push_back(nearest(value, 8, 0, 0x1.fep127));
  }
  DeviceArray<float> device_in(in), device_out(std::vector<float>(2 * in.size()));
  DeviceArray<uint32_t> device_pairs(std::vector<uint32_t>(2 * in.size()));
  launch("rounding", kernel, {1, static_cast<unsigned>(in.size()), nullptr}, device_in.data(),
         device_out.data(), device_pairs.data(), fault);
  expect_equal(device_out.values(), expected);
  std::vector<uint32_t> expected_pairs;
  for (float value : in) {
    using product::to_bits, product::Type;
    expected_pairs.push_back(to_bits<Type::kHalf>(value) | uint32_t{to_bits<Type::kHalf>(2 * value)} << 16);
    expected_pairs.push_back(to_bits<Type::kBFloat16>(value) | uint32_t{to_bits<Type::kBFloat16>(2 * value)}
                                                                   << 16);
  }
  expect_equal(device_pairs.values(), expected_pairs);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  if (!std::isnan(__half2float(__float2half_rn(nan))) ||
      !std::isnan(__bfloat162float(__float2bfloat16_rn(nan))))
    throw std::runtime_error("wrong result: NaN is lost");
}

}  // namespace rounding

}  // namespace

std::vector<Probe> tensor_core_probes() {
  const std::vector<const char*> tf32_faults{"swapped_registers", "wrong_lane", "wrong_result_lane"};
  auto faults = tf32_faults;
  faults.push_back("swapped_halves");
  return {
      {"mma_half", faults, product::run<product::Type::kHalf>},
      {"mma_bfloat16", faults, product::run<product::Type::kBFloat16>},
      {"mma_tf32", tf32_faults, product::run<product::Type::kTf32>},
      {"rounding", {"truncated", "swapped_halves"}, rounding::run},
  };
}

}  // namespace fusedlstm::cuda::probes
