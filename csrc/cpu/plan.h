// How the threads of a call share a layer on the CPU: a pure function of its sizes.
#pragma once

#include <cstdint>

namespace fusedlstm::cpu {

struct Problem {
  int64_t steps, batch, input, hidden, outputs, directions;  // T, N, I, H, P, D
  int64_t threads;                                           // at hand
};

// Threads form `groups` of directions, each a grid: `columns` of them share the units, `rows` the batch. Only
// the columns of a row wait for each other, once a step.
struct Plan {
  int64_t groups, columns, rows;
  int64_t
      chunk;   // steps whose input products are formed at once, and from whose gradients those of the weights
  bool packs;  // whether the forward pass packs the weights first

  int64_t threads() const { return groups * columns * rows; }
};

enum class Pass { forward, backward };

Plan make_plan(const Problem& problem, Pass pass);

}  // namespace fusedlstm::cpu
