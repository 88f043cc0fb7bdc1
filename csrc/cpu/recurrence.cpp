// Threads: how a step is divided among them, and where they wait for each other.
#include "recurrence.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel.h"

namespace fusedlstm::cpu {
namespace {

// The best instruction set of this processor, or the one that FUSEDLSTM_ISA names.
template <class T>
const Kernel<T>& choose_kernel() {
  std::vector<const Kernel<T>*> usable;  // best first
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    usable.push_back(&kernel_avx512<T>());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) usable.push_back(&kernel_avx2<T>());
#endif
  usable.push_back(&kernel_plain<T>());
  const char* wanted = std::getenv("FUSEDLSTM_ISA");
  if (wanted == nullptr) return *usable.front();
  std::string names;
  for (const Kernel<T>* kernel : usable) {
    if (std::string(wanted) == kernel->instruction_set) return *kernel;
    names += (names.empty() ? "" : ", ") + std::string(kernel->instruction_set);
  }
  throw std::runtime_error("FUSEDLSTM_ISA must be one this processor has (" + names + "), got " + wanted);
}

template <class T>
const Kernel<T>& kernel() {
  static const Kernel<T>& chosen = choose_kernel<T>();
  return chosen;
}

int64_t blocks(int64_t n, int64_t per_block) {
  return (n + per_block - 1) / per_block;
}

// Threads form a grid: `columns` groups share the units, `rows` groups share the batch. Only threads that
// share a row's units ever wait for each other, so a grid of one column needs no barrier.
struct Grid {
  int64_t columns, rows;

  Share share(int64_t thread, int64_t block_count) const {
    const int64_t column = thread % columns;
    return {block_count * column / columns, block_count * (column + 1) / columns, thread / columns, rows};
  }
};

// A slice of the weights that a core's own cache holds for the whole sequence; most have 512 KiB to 2 MiB.
constexpr int64_t kCacheBytes = 512 * 1024;

Grid make_grid(int64_t threads, int64_t batch, int64_t weight_bytes) {
  if (weight_bytes > kCacheBytes) return {threads, 1};
  // Rows that end together balance best; what does not divide evenly is shared by units.
  int64_t rows = threads;
  while (rows > 1 && (threads % rows != 0 || batch < 2 * rows)) --rows;
  return {threads / rows, rows};
}

// A step of fewer multiplications takes less than waking a team and waiting for it.
constexpr int64_t kParallelWork = 1 << 15;

int64_t useful_threads(const Sizes& s, int64_t threads) {
  return s.batch * s.hidden * s.outputs * 4 < kParallelWork ? 1 : std::min(threads, s.hidden);
}

void barrier(const Grid& grid) {
  if (grid.columns > 1) {
#pragma omp barrier
  }
}

}  // namespace

template <class T>
void forward(const ForwardArgs<T>& args, int threads) {
  const Sizes& s = args.size;
  const Kernel<T>& k = kernel<T>();
  const int64_t unit_blocks = blocks(s.hidden, k.units_per_block);
  const int64_t column_blocks = blocks(s.outputs, k.columns_per_block);
  T* const packed_hh = args.workspace;
  T* const packed_hr = packed_hh + 4 * padded(s.hidden) * s.outputs;
  T* const scratch_h = packed_hr + padded(s.outputs) * s.hidden;
  const int64_t wanted = useful_threads(s, threads);

#pragma omp parallel num_threads(wanted) if (wanted > 1)
  {
    const int64_t team = omp_get_num_threads(), thread = omp_get_thread_num();
    const Grid grid = make_grid(team, s.batch, 4 * s.hidden * s.outputs * sizeof(T));
    const Grid packing{team, 1};
    if (args.weight_hh) k.pack_gates(args, packing.share(thread, unit_blocks), packed_hh);
    if (args.weight_hr)
      k.pack_rows(args.weight_hr, s.outputs, s.hidden, packing.share(thread, column_blocks), packed_hr);
#pragma omp barrier

    const Share units = grid.share(thread, unit_blocks), columns = grid.share(thread, column_blocks);
    for (int64_t step = 0; step < s.steps; ++step) {
      const int64_t t = args.reverse ? s.steps - 1 - step : step;
      if (args.weight_hr) {
        k.forward_step(args, t, units, packed_hh, scratch_h, s.hidden);
        barrier(grid);
        k.project(args, t, columns, packed_hr, scratch_h);
      } else {
        T* const h = args.y ? args.y + t * s.batch * args.y_stride : nullptr;
        k.forward_step(args, t, units, packed_hh, h, args.y_stride);
      }
      if (args.weight_hh) barrier(grid);
    }
  }
  if (!args.h_n) return;

  for (int64_t row = 0; row < s.batch; ++row) {
    const int64_t length = args.rows.length[row], last = args.reverse ? 0 : length - 1;
    const T* const h = length ? args.y + (last * s.batch + row) * args.y_stride : args.h0 + row * s.outputs;
    const T* const c = length ? args.c + last * args.c_step + row * args.c_stride : args.c0 + row * s.hidden;
    std::copy_n(h, s.outputs, args.h_n + row * s.outputs);
    if (c != args.c_n + row * s.hidden) std::copy_n(c, s.hidden, args.c_n + row * s.hidden);
  }
}

template <class T>
void backward(const BackwardArgs<T>& args, int threads) {
  const Sizes& s = args.size;
  const Kernel<T>& k = kernel<T>();
  const bool projected = args.weight_hr != nullptr;
  const int64_t unit_blocks = blocks(s.hidden, k.columns_per_block);
  const int64_t column_blocks = blocks(s.outputs, k.columns_per_block);
  T* const packed_hh = args.workspace;
  T* const packed_hr = packed_hh + 4 * s.hidden * padded(s.outputs);
  const int64_t wanted = useful_threads(s, threads);

#pragma omp parallel num_threads(wanted) if (wanted > 1)
  {
    const int64_t team = omp_get_num_threads(), thread = omp_get_thread_num();
    const Grid grid = make_grid(team, s.batch, 4 * s.hidden * s.outputs * sizeof(T));
    const Grid packing{team, 1};
    if (args.weight_hh)
      k.pack_columns(args.weight_hh, 4 * s.hidden, s.outputs, packing.share(thread, column_blocks),
                     packed_hh);
    if (projected)
      k.pack_columns(args.weight_hr, s.outputs, s.hidden, packing.share(thread, unit_blocks), packed_hr);
#pragma omp barrier

    const Share units = grid.share(thread, unit_blocks), columns = grid.share(thread, column_blocks);
    for (int64_t step = 0; step < s.steps; ++step) {
      const int64_t t = args.reverse ? step : s.steps - 1 - step;
      if (projected) {
        k.backward_project(args, t, columns, packed_hh);
        barrier(grid);
      }
      k.backward_step(args, t, units, projected ? packed_hr : packed_hh);
      barrier(grid);
    }
  }
}

template void forward(const ForwardArgs<float>&, int);
template void forward(const ForwardArgs<double>&, int);
template void backward(const BackwardArgs<float>&, int);
template void backward(const BackwardArgs<double>&, int);

const char* instruction_set() {
  return kernel<float>().instruction_set;
}

}  // namespace fusedlstm::cpu
