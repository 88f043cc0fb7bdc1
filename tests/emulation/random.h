// The only source of chance in the emulator, so that a seed repeats a run exactly.
#pragma once

#include <cstdint>
#include <numeric>

namespace fusedlstm::emulation {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  unsigned below(unsigned bound) { return static_cast<unsigned>((next() >> 32) * bound >> 32); }
  bool one_in(unsigned n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

// Visits 0..size-1 once each from a random start by a random stride: a shuffle that costs nothing per
// element.
class RandomOrder {
 public:
  RandomOrder() = default;
  RandomOrder(unsigned size, Random& random) : size_(size), left_(size), at_(random.below(size)) {
    do stride_ = 1 + random.below(size);
    while (std::gcd(stride_, size) != 1);
  }

  unsigned left() const { return left_; }
  unsigned next() {
    const unsigned element = at_;
    at_ += stride_;
    if (at_ >= size_) at_ -= size_;
    --left_;
    return element;
  }

 private:
  unsigned size_ = 0, left_ = 0, at_ = 0, stride_ = 0;
};

}  // namespace fusedlstm::emulation
