// How the threads of a call share a layer on the CPU: a pure function of sizes, threads, pass and cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../sizes.h"

namespace fusedlstm::cpu {

// Rows of the batch that are multiplied with one panel of weights while it is in the L1 cache (BLIS: MC).
constexpr int kMC = 48;

// Items [begin, end).
struct Range {
  int64_t begin, end;
};

// Threads form `groups`, and a group runs one direction at a time. A group is a grid: the batch is divided
// among `row_threads`, and the units of each part among `unit_threads`. Only the unit threads of the same
// part of the batch wait for each other in a step.
struct ThreadPlan {
  int64_t groups, unit_threads, row_threads;
  int64_t time_block;  // steps whose products with x (forward) or weight gradients (backward) are one product
  bool packs;          // whether the pass packs the weights first

  int64_t group_size() const { return row_threads * unit_threads; }
  int64_t threads() const { return groups * group_size(); }
  // The most entries of a time block. One of a packed batch may have more steps than one of a padded batch.
  int64_t block_entries(const Sizes& sizes) const {
    return std::min(time_block * sizes.batch, sizes.entries);
  }
};

// Of a forward pass.
int64_t multiply_adds(const Sizes& sizes);

// The smallest calls for which packed weights are faster than unpacked ones.
struct PackedFrom {
  int64_t rows;     // of the batch, in a forward pass
  int64_t entries;  // in a backward pass
};

// `threads` is how many are available; the plan may use fewer. `cached_weight_bytes`: as in caches.h.
ThreadPlan make_thread_plan(const Sizes& sizes, int64_t threads, Pass pass, int64_t cached_weight_bytes,
                            PackedFrom packed_from);

// Divides all steps into time blocks, in rising or falling order of steps. Step t has the entries
// [offset[t], offset[t + 1]).
std::vector<Range> divide_steps(const int64_t* offset, int64_t steps, int64_t block_entries, bool falling);

}  // namespace fusedlstm::cpu
