// How the work of a pass is divided among the strands of a plan.
#pragma once

#include <algorithm>
#include <cstdint>

#include "args.h"

namespace fusedlstm::cpu {

inline int64_t round_up(int64_t n, int64_t multiple) {
  return ceil_div(n, multiple) * multiple;
}

// The index-th of `count` equal parts of n items.
inline Range even_part(int64_t n, int64_t index, int64_t count) {
  return {n * index / count, n * (index + 1) / count};
}

// Steps of a part that meets no other strand: so many that claiming it takes little of its time, and so few
// that a thread without work finds some that nobody has claimed.
constexpr int64_t kStepsOfPart = 16;

// How n units (or output columns) of a step are divided, in unit blocks of `width`. The first `even` blocks
// are divided evenly among the unit threads: strand (row, unit) computes its own for every row_threads-th
// row. Those that the division leaves over are computed by all strands, each for every group_size-th row.
// With a batch of under 4 rows for each strand, all are divided, even if unevenly.
//
// With more than kMC rows for a strand, a share has at most `nc_blocks` unit blocks, whose panels stay in
// the core's own cache until all rows have used them (BLIS: NC).
struct Division {
  int64_t blocks, even, nc_blocks;

  Division(const ThreadPlan& plan, int64_t n, int64_t width, int64_t nc_panels, int64_t batch)
      : blocks(ceil_div(n, width)),
        even(batch < kRowsToDivide * plan.group_size() ? blocks
                                                       : n / width / plan.unit_threads * plan.unit_threads),
        nc_blocks(batch <= kMC * plan.row_threads ? blocks : nc_panels) {}

 private:
  static constexpr int64_t kRowsToDivide = 4;
};

// A strand of the plan: its group, and its coordinates in the grid of the group.
struct Strand {
  const ThreadPlan& plan;
  int64_t group, row_thread, unit_thread;

  Strand(const ThreadPlan& plan, int64_t index)
      : plan(plan),
        group(index / plan.group_size()),
        row_thread(index / plan.unit_threads % plan.row_threads),
        unit_thread(index % plan.unit_threads) {}

  int64_t index_in_group() const { return row_thread * plan.unit_threads + unit_thread; }
  // This strand's part of n items that are divided among the whole group.
  Range part_of_group(int64_t n) const { return even_part(n, index_in_group(), plan.group_size()); }

  // Calls function(share) for each share of this strand.
  template <class T, class Function>
  void for_each_share(const Division& division, T* workspace, const Function& function) const {
    const auto run = [&](Range blocks, int64_t row_first, int64_t row_stride) {
      for (int64_t begin = blocks.begin; begin < blocks.end; begin += division.nc_blocks)
        function(Share<T>{
            {begin, std::min(begin + division.nc_blocks, blocks.end)}, row_first, row_stride, workspace});
    };
    run(even_part(division.even, unit_thread, plan.unit_threads), row_thread, plan.row_threads);
    run({division.even, division.blocks}, row_thread + unit_thread * plan.row_threads, plan.group_size());
  }
};

}  // namespace fusedlstm::cpu
