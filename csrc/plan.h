// Which kernels run one layer on a GPU and how they share its work: pure arithmetic on the problem and on
// what the device offers, so that the choice for any GPU can be printed and tested where there is none.
#pragma once

#include <cstdint>
#include <string>

namespace fusedlstm {

enum class Type { float32, float64, float16, bfloat16 };

// Gates and cell states of 16-bit types are float32.
constexpr int64_t compute_bytes(Type type) {
  return type == Type::float64 ? 8 : 4;
}

struct Problem {
  int64_t steps, batch, hidden, outputs, directions;  // T, N, H, P (= H without a projection), D
  Type type;
};

struct Limits {
  int multiprocessors;
  int threads_per_multiprocessor;
  int registers_per_multiprocessor;
};

enum class Strategy { stepwise };

struct Plan {
  Strategy strategy;
  // Of the kernel that updates all cells of a step.
  int units;    // that one thread updates: as many as fit 16 bytes, or one
  int threads;  // of a block
  int64_t blocks;
  int registers;  // of a thread, at most: the compile gate holds the kernels to it
  int launches_per_step;
  std::string reason;
};

// Throws std::invalid_argument for a problem that no kernel can take.
Plan make_plan(const Problem& problem, const Limits& limits);

std::string to_string(const Plan& plan);

}  // namespace fusedlstm
