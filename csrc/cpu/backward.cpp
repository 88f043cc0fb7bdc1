// The backward pass, in phases.
#include <algorithm>
#include <numeric>
#include <vector>

#include "args.h"
#include "kernels/isa.h"
#include "strands.h"
#include "team.h"

namespace fusedlstm::cpu {
namespace {

// Depth that a sum of the weight gradients covers between two additions to memory. It is shorter than kKC:
// nn.LSTM adds up one product per step, and so has the rounding error of sums over N rows only.
constexpr int64_t kWeightGradientKC = 64;

// A dense matrix as pointers to its rows.
template <class W>
std::vector<const W*> row_pointers(const W* matrix, int64_t rows, int64_t stride) {
  std::vector<const W*> pointers(rows);
  for (int64_t r = 0; r < rows; ++r) pointers[r] = matrix + r * stride;
  return pointers;
}

// Lays out the parts of the workspace one after another, each beginning at a multiple of the longest vector.
// Without `memory` only the size is of use.
template <class T, class W>
BackwardWorkspace<T, W> lay_out(const BackwardKernels<T, W>& k, const Sizes& s, const ThreadPlan& plan,
                                bool projected, T* memory) {
  const int64_t N = s.batch, H = s.hidden, P = s.outputs, G = 4 * H, depth = plan.block_entries(s);
  const int64_t projected_P = projected ? P : 0, projected_H = projected ? H : 0;
  int64_t used = 0;
  const auto take = [&](int64_t count) -> T* {
    T* const begin = memory ? memory + used : nullptr;
    used += round_up(count, kMaxLanes);
    return begin;
  };
  const auto take_factor = [&](int64_t count) {
    return reinterpret_cast<W*>(take(ceil_div(count * sizeof(W), sizeof(T))));
  };
  const auto take_packed = [&](int64_t depth, int64_t columns) {
    return take(k.packed_depth(depth) * round_up(columns, k.nr));
  };
  const auto take_weight = [&](int64_t depth, int64_t columns) {
    return plan.packs ? take_packed(depth, columns) : nullptr;
  };
  const auto take_sums = [&](int64_t count) {
    return std::is_same_v<T, W> || depth == s.entries ? nullptr : take(count);
  };
  const int64_t row_block = round_up(k.workspace(plan.packs ? std::max(G, depth) : depth), kMaxLanes);
  BackwardWorkspace<T, W> workspace{.panels_ih = take_weight(G, s.input),
                                    .panels_hh = take_weight(G, P),
                                    .panels_hr = take_weight(projected_P, H),
                                    .grad_gates_next = take_factor(N * G),
                                    .grad_gates_first = take_factor(N * G),
                                    .grad_gates = take_factor(depth * G),
                                    .grad_p = take_factor(depth * projected_P),
                                    .h = take_factor(depth * projected_H),
                                    .grad_gates_t = take_factor(depth * G),
                                    .grad_p_t = take_factor(depth * projected_P),
                                    .panels_x = take_packed(depth, s.input),
                                    .panels_h_prev = take_packed(depth, P),
                                    .panels_h = take_packed(depth, projected_H),
                                    .sums_ih = take_sums(G * s.input),
                                    .sums_hh = take_sums(G * P),
                                    .sums_hr = take_sums(projected_P * H),
                                    .row_blocks = take(plan.threads() * row_block),
                                    .row_block = row_block,
                                    .size = 0};
  workspace.size = used;
  return workspace;
}

// The state before each entry of a time block: zeros if its row takes no part in its step.
template <class T, class W>
std::vector<const W*> previous_states(const BackwardArgs<T, W>& args, Range time_block) {
  const int64_t* const offset = args.rows.offset;
  std::vector<const W*> states;
  states.reserve(offset[time_block.end] - offset[time_block.begin]);
  for (int64_t t = time_block.begin; t < time_block.end; ++t)
    for (int64_t row = 0; row < offset[t + 1] - offset[t]; ++row)
      states.push_back(t < args.rows.length[row] ? h_before(args, t, row)
                                                 : static_cast<const W*>(args.zeros));
  return states;
}

// Whether the factors of the weights' gradients are transposed and packed. Sums of few terms are faster from
// the factors as they are, but that product neither rounds to W nor adds up time blocks.
template <class T, class W>
bool arranges_factors(const BackwardArgs<T, W>& args, const ThreadPlan& plan) {
  return plan.packs || args.time_blocks.size() > 1 || !std::is_same_v<T, W>;
}

enum class BackwardWork { begin, project, steps, input_gradient, weight_gradients, h0_gradient };
struct BackwardPhase {
  BackwardWork work;
  Range time_block;
  Range steps;  // of the time block, in the order in which the pass goes through them
  Barrier after = Barrier::rows;
};

template <class T, class W>
std::vector<BackwardPhase> phases_of(const BackwardArgs<T, W>& args, const ThreadPlan& plan) {
  using Work = BackwardWork;
  std::vector<BackwardPhase> phases{{Work::begin, {}, {}, Barrier::group}};
  const bool meets = args.weight_hr || plan.unit_threads > 1;
  const int64_t together = meets ? 1 : kStepsOfPart;
  for (const Range& time_block : args.time_blocks) {
    const int64_t count = time_block.end - time_block.begin;
    for (int64_t i = 0; i < count; i += together) {
      const Range steps{i, std::min(i + together, count)};
      if (args.weight_hr) phases.push_back({Work::project, time_block, steps});
      phases.push_back({Work::steps, time_block, steps});
    }
    phases.back().after = Barrier::group;
    phases.push_back({Work::input_gradient, time_block, {}, Barrier::group});
    if (arranges_factors(args, plan)) phases.push_back({Work::weight_gradients, time_block, {}});
  }
  if (args.grad_h0) phases.push_back({Work::h0_gradient, {}, {}});
  return phases;
}

// The backward pass of one direction, as one strand has it.
template <class T, class W>
class BackwardStrand {
 public:
  BackwardStrand(const BackwardKernels<T, W>& k, const BackwardArgs<T, W>& args, const Strand& strand)
      : k_(k), args_(args), strand_(strand) {}

  void run(const BackwardPhase& phase) {
    switch (phase.work) {
      case BackwardWork::begin:
        pack_weights();
        return clear_first_grad_gates();
      case BackwardWork::project:
      case BackwardWork::steps:
        return recurrence(phase);
      case BackwardWork::input_gradient:
        gradient_of_input(phase.time_block);
        if (arranges_factors(args_, strand_.plan)) return arrange_factors(phase.time_block);
        if constexpr (std::is_same_v<T, W>) gradients_of_weights_unpacked(phase.time_block);
        return;
      case BackwardWork::weight_gradients:
        return gradients_of_weights(phase.time_block);
      case BackwardWork::h0_gradient:
        return multiply(workspace_.grad_gates_first, s_.batch, args_.weight_hh, workspace_.panels_hh,
                        s_.outputs, false, args_.grad_h0);
    }
  }

 private:
  int64_t G() const { return 4 * s_.hidden; }
  T* row_block() const { return workspace_.row_blocks + strand_.index_in_group() * workspace_.row_block; }
  Range own(int64_t n) const { return strand_.part_of_group(n); }
  // Entries of some steps.
  int64_t entries(Range steps) const { return args_.rows.offset[steps.end] - args_.rows.offset[steps.begin]; }
  bool packs() const { return strand_.plan.packs; }
  // Whether a matrix has a panel for each thread.
  bool divides_panels(int64_t columns) const { return ceil_div(columns, k_.nr) >= strand_.plan.group_size(); }
  // Whether W_ih is packed inside the product that reads it, panel by panel while it is cached. That needs
  // it to be read once: in a single time block, with panels divided among the threads.
  bool packs_in_gemm() const { return packs() && args_.time_blocks.size() == 1 && divides_panels(s_.input); }

  // This thread's part of a product with a packed matrix (BackwardKernels::gemm): part of the rows, or of the
  // panels if rows are few. With `unpacked` it packs its panels from that matrix first.
  void gemm(const W* a, int64_t depth, int64_t rows, T* packed, int64_t columns, int64_t kc, bool adds,
            T* sums, W* out, const W* unpacked = nullptr) {
    const int64_t NR = k_.nr, panel_size = NR * k_.packed_depth(depth), panel_count = ceil_div(columns, NR),
                  nc_panels = k_.nc_panels(depth);
    const bool by_rows = !unpacked && (rows >= kMC * strand_.plan.group_size() || !divides_panels(columns));
    const Range row = by_rows ? own(rows) : Range{0, rows},
                panels = by_rows ? Range{0, panel_count} : own(panel_count);
    T* part = packed + panels.begin * panel_size;
    for (int64_t begin = panels.begin; begin < panels.end; begin += nc_panels) {
      const int64_t end = std::min(begin + nc_panels, panels.end), column = begin * NR;
      if (unpacked)
        k_.pack_panels(row_pointers(unpacked + column, depth, columns).data(), depth, columns - column,
                       {0, end - begin}, part);
      const auto own_part = [&](auto* all) { return all ? all + row.begin * columns + column : nullptr; };
      k_.gemm(a + row.begin * depth, row.end - row.begin, part, std::min(end * NR, columns) - column, depth,
              kc, adds, own_part(sums), own_part(out), columns, row_block());
      if (!unpacked) part += nc_panels * panel_size;
    }
  }

  // This thread's part of out [rows, columns] = a [rows, b.size()] times the rows b, or += with `adds`. Value
  // (r, k) of a is a[r * a_row + k * a_depth].
  void gemm_unpacked(const W* a, int64_t a_row, int64_t a_depth, int64_t rows, const std::vector<const W*>& b,
                     int64_t columns, bool adds, T* out) {
    const auto depth = static_cast<int64_t>(b.size());
    if (rows >= kMC * strand_.plan.group_size()) {
      const Range row = own(rows);
      k_.gemm_unpacked(a + row.begin * a_row, a_row, a_depth, row.end - row.begin, b.data(), depth, columns,
                       adds, out + row.begin * columns, columns);
      return;
    }
    const Range vectors = own(ceil_div(columns, k_.lanes));
    const int64_t begin = vectors.begin * k_.lanes, end = std::min(vectors.end * k_.lanes, columns);
    std::vector<const W*> part(b);
    for (const W*& row : part) row += begin;
    k_.gemm_unpacked(a, a_row, a_depth, rows, part.data(), depth, end - begin, adds, out + begin, columns);
  }

  // out [rows, columns] = gradients of gates [rows, 4H] times a weight, or += with `adds`. Without panels the
  // weight is read as it is stored.
  void multiply(const W* grad_gates, int64_t rows, const W* weight, T* panels, int64_t columns, bool adds,
                T* out, bool packs_first = false) {
    if (packs())
      gemm(grad_gates, G(), rows, panels, columns, kKC, adds, out, nullptr, packs_first ? weight : nullptr);
    else
      gemm_unpacked(grad_gates, G(), 1, rows, row_pointers(weight, G(), columns), columns, adds, out);
  }

  void pack(const std::vector<const W*>& rows, int64_t columns, T* packed) {
    k_.pack_panels(rows.data(), static_cast<int64_t>(rows.size()), columns, own(ceil_div(columns, k_.nr)),
                   packed);
  }

  void pack_weights() {
    if (!packs()) return;
    if (args_.grad_x && !packs_in_gemm())
      pack(row_pointers(args_.weight_ih, G(), s_.input), s_.input, workspace_.panels_ih);
    if (args_.grad_h0 || s_.steps > 1)
      pack(row_pointers(args_.weight_hh, G(), s_.outputs), s_.outputs, workspace_.panels_hh);
    if (args_.weight_hr)
      pack(row_pointers(args_.weight_hr, s_.outputs, s_.hidden), s_.hidden, workspace_.panels_hr);
  }

  // Rows that take no part in a step have no first step.
  void clear_first_grad_gates() {
    const Range rows = own(s_.batch);
    std::fill(workspace_.grad_gates_first + rows.begin * G(), workspace_.grad_gates_first + rows.end * G(),
              W{});
  }

  // Gradients of the gates of some steps, or those of outputs before a projection.
  void recurrence(const BackwardPhase& phase) {
    const Range block = phase.time_block;
    const bool projects = phase.work == BackwardWork::project;
    const auto kernel = projects ? k_.backward_project : k_.backward_step;
    for (int64_t i = phase.steps.begin; i < phase.steps.end; ++i) {
      const int64_t t = args_.reverse ? block.begin + i : block.end - 1 - i;
      strand_.for_each_share<T>(projects ? of_projection_ : of_step_, row_block(),
                                [&](const Share<T>& share) { kernel(args_, workspace_, block, t, share); });
    }
  }

  // grad_x of the time block. The gates' gradients of its first step are kept for the block before it.
  void gradient_of_input(Range time_block) {
    const int64_t edge = args_.reverse ? time_block.end - 1 : time_block.begin;
    const W* const grad_gates = workspace_.grad_gates + entries({time_block.begin, edge}) * G();
    const Range rows = own(entries({edge, edge + 1}));
    std::copy(grad_gates + rows.begin * G(), grad_gates + rows.end * G(),
              workspace_.grad_gates_next + rows.begin * G());
    if (args_.grad_x)
      multiply(workspace_.grad_gates, entries(time_block), args_.weight_ih, workspace_.panels_ih, s_.input,
               args_.reverse, args_.grad_x + args_.rows.offset[time_block.begin] * s_.input, packs_in_gemm());
  }

  // The gradients of weights and biases from the only time block. Sums of few terms: both factors are read as
  // they are.
  void gradients_of_weights_unpacked(Range time_block)
    requires std::is_same_v<T, W>
  {
    const int64_t H = s_.hidden, P = s_.outputs, I = s_.input, depth = entries(time_block);
    const T one = 1;
    const auto add = [&](const W* grad, int64_t rows, const std::vector<const W*>& b, int64_t columns,
                         T* out) { gemm_unpacked(grad, 1, rows, rows, b, columns, false, out); };
    if (args_.grad_weight_ih)
      add(workspace_.grad_gates, G(),
          row_pointers(args_.x + args_.rows.offset[time_block.begin] * I, depth, I), I, args_.grad_weight_ih);
    if (args_.grad_weight_hh)
      add(workspace_.grad_gates, G(), previous_states(args_, time_block), P, args_.grad_weight_hh);
    if (args_.grad_weight_hr)
      add(workspace_.grad_p, P, row_pointers<W>(workspace_.h, depth, H), H, args_.grad_weight_hr);
    if (args_.grad_bias)  // the sum over the entries
      gemm_unpacked(&one, 0, 0, 1, row_pointers<W>(workspace_.grad_gates, depth, G()), G(), false,
                    args_.grad_bias);
  }

  // Both factors of the weight gradients, whose sums run over entries: one transposed, one packed.
  void arrange_factors(Range time_block) {
    const int64_t H = s_.hidden, P = s_.outputs, depth = entries(time_block);
    const auto transpose = [&](const W* matrix, int64_t columns, W* out) {
      k_.transpose(row_pointers(matrix, depth, columns).data(), depth, own(columns), out);
    };
    if (args_.grad_weight_ih || args_.grad_weight_hh || args_.grad_bias)
      transpose(workspace_.grad_gates, G(), workspace_.grad_gates_t);
    if (args_.grad_weight_ih)
      pack(row_pointers(args_.x + args_.rows.offset[time_block.begin] * s_.input, depth, s_.input), s_.input,
           workspace_.panels_x);
    if (args_.grad_weight_hh) pack(previous_states(args_, time_block), P, workspace_.panels_h_prev);
    if (args_.grad_weight_hr) {
      transpose(workspace_.grad_p, P, workspace_.grad_p_t);
      pack(row_pointers<W>(workspace_.h, depth, H), H, workspace_.panels_h);
    }
  }

  // Adds the time block's part to the gradients of weights and biases, or writes the first part.
  void gradients_of_weights(Range time_block) {
    const int64_t depth = entries(time_block);
    const bool adds = time_block.begin != args_.time_blocks.front().begin,
               ends = time_block.begin == args_.time_blocks.back().begin;
    const auto add = [&](const W* grad_t, int64_t rows, T* packed, int64_t columns, T* sums, W* out) {
      if constexpr (std::is_same_v<T, W>) sums = out;
      if (out)
        gemm(grad_t, depth, rows, packed, columns, kWeightGradientKC, adds, sums, ends ? out : nullptr);
    };
    const BackwardWorkspace<T, W>& w = workspace_;
    add(w.grad_gates_t, G(), w.panels_x, s_.input, w.sums_ih, args_.grad_weight_ih);
    add(w.grad_gates_t, G(), w.panels_h_prev, s_.outputs, w.sums_hh, args_.grad_weight_hh);
    add(w.grad_p_t, s_.outputs, w.panels_h, s_.hidden, w.sums_hr, args_.grad_weight_hr);
    if (args_.grad_bias) gradient_of_bias(depth, adds);
  }

  void gradient_of_bias(int64_t depth, bool adds) {
    const Range gates = own(G());
    for (int64_t j = gates.begin; j < gates.end; ++j) {
      const W* const grads = workspace_.grad_gates_t + j * depth;
      T sums[8] = {};  // eight shorter sums: less rounding error
      int64_t i = 0;
      for (; i + 8 <= depth; i += 8)
        for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += widen(grads[i + lane]);
      for (; i < depth; ++i) sums[i % 8] += widen(grads[i]);
      args_.grad_bias[j] = (adds ? args_.grad_bias[j] : T(0)) + std::accumulate(sums, sums + 8, T(0));
    }
  }

  const BackwardKernels<T, W>& k_;
  const BackwardArgs<T, W>& args_;
  const Strand strand_;
  const Sizes& s_ = args_.size;
  const Division of_projection_ = divide(s_.outputs, 4 * s_.hidden),
                 of_step_ = divide(s_.hidden, args_.weight_hr ? s_.outputs : 4 * s_.hidden);
  const BackwardWorkspace<T, W> workspace_ =
      lay_out(k_, s_, strand_.plan, args_.weight_hr != nullptr, args_.workspace);

  Division divide(int64_t n, int64_t depth) const {
    return Division(strand_.plan, n, k_.nr, k_.nc_panels(depth), s_.batch);
  }
};

}  // namespace

template <class T, class W>
int64_t backward_workspace(const Sizes& size, const ThreadPlan& plan, bool projected) {
  return lay_out<T, W>(backward_kernels<T, W>(), size, plan, projected, nullptr).size;
}

template <class T, class W>
void backward(const BackwardArgs<T, W>& args, const ThreadPlan& plan) {
  const BackwardKernels<T, W>& k = backward_kernels<T, W>();
  std::vector<BackwardStrand<T, W>> strands;
  for (int64_t i = 0; i < plan.threads(); ++i) strands.emplace_back(k, args, Strand(plan, i));
  const std::array<std::vector<BackwardPhase>, 1> phases{phases_of(args, plan)};
  run_team(plan, phases.data(),
           [&](int64_t strand, const BackwardPhase& phase) { strands[strand].run(phase); });
}

template int64_t backward_workspace<double, double>(const Sizes&, const ThreadPlan&, bool);
template void backward(const BackwardArgs<double, double>&, const ThreadPlan&);
template int64_t backward_workspace<float, float>(const Sizes&, const ThreadPlan&, bool);
template void backward(const BackwardArgs<float, float>&, const ThreadPlan&);
template int64_t backward_workspace<float, BFloat16>(const Sizes&, const ThreadPlan&, bool);
template void backward(const BackwardArgs<float, BFloat16>&, const ThreadPlan&);

}  // namespace fusedlstm::cpu
