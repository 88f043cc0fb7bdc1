// Threads: how a pass is divided among them, and where they wait for each other.
#include "recurrence.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "isa.h"
#include "team.h"

namespace fusedlstm::cpu {
namespace {

int64_t blocks(int64_t n, int64_t per_block) {
  return (n + per_block - 1) / per_block;
}

// Rows that use a piece of a panel while it is in the L1 cache.
constexpr int64_t kRowsOfPanel = 48;

// The plan for as many threads as came; a smaller team than was planned for shares the units.
Plan for_team(const Plan& plan, int64_t team) {
  return team == plan.threads() ? plan : Plan{1, team, 1, plan.chunk, plan.packs};
}

// A thread's place: which direction's group it is in, and which row and column of the group's grid.
struct Member {
  Plan plan;
  int64_t group, row, column;

  Member(const Plan& plan, int64_t index)
      : plan(plan),
        group(index / (plan.columns * plan.rows)),
        row(index / plan.columns % plan.rows),
        column(index % plan.columns) {}

  // What this member does of n units or columns: blocks of its own, and rows of those that do not divide
  // evenly, where there are rows enough. Rows that do not use a panel all at once take the blocks in parts of
  // `near`, each for all of them before the next.
  template <class T>
  std::vector<Share<T>> parts(int64_t n, int64_t per_block, int64_t near, int64_t batch, T* room) const {
    constexpr int64_t kRowsOfPart = 4;
    const int64_t members = plan.columns, stride = plan.rows * members, block_count = blocks(n, per_block);
    const int64_t whole = batch < kRowsOfPart * stride ? block_count : n / per_block / members * members;
    if (batch <= kRowsOfPanel * plan.rows) near = block_count;
    std::vector<Share<T>> parts;
    const auto add = [&](int64_t begin, int64_t end, int64_t row_first, int64_t row_stride) {
      for (; begin < end; begin += near)
        parts.push_back({begin, std::min(begin + near, end), row_first, row_stride, room});
    };
    add(whole * column / members, whole * (column + 1) / members, row, plan.rows);
    add(whole, block_count, row + column * plan.rows, stride);
    return parts;
  }
  // Of a group's members, which one, of how many.
  int64_t in_group() const { return row * plan.columns + column; }
  int64_t group_size() const { return plan.rows * plan.columns; }
};

// Where members meet: those of a group, and those who share rows.
class Barriers {
 public:
  explicit Barriers(const Plan& plan) : barriers_(2 * plan.threads()) {}

  void meet_group(const Member& m) { barriers_[m.group].wait(m.group_size()); }
  void meet_columns(const Member& m) {
    barriers_[m.plan.threads() + m.group * m.plan.rows + m.row].wait(m.plan.columns);
  }

 private:
  std::vector<Barrier> barriers_;
};

// An equal part of n for one of `members`.
Chunk part(int64_t n, int64_t member, int64_t members) {
  return {n * member / members, n * (member + 1) / members};
}

template <class T, class W>
int64_t near_panels(const Kernel<T, W>& k, int64_t depth) {
  return std::max<int64_t>(1, k.near_terms / std::max<int64_t>(depth, 1));
}

template <class T, class W>
void forward_direction(const Kernel<T, W>& k, const ForwardArgs<T, W>& args, const Member& member, T* room,
                       Barriers& barriers) {
  const Sizes& s = args.size;
  const int64_t unit_blocks = blocks(s.hidden, k.lanes);
  if (args.packed_ih) {
    const Chunk own = part(unit_blocks, member.in_group(), member.group_size());
    k.pack_gates(args.weight_ih, s.hidden, s.input, own.begin, own.end, args.packed_ih);
    k.pack_gates(args.weight_hh, s.hidden, s.outputs, own.begin, own.end, args.packed_hh);
    barriers.meet_group(member);
  }
  const int64_t step_depth = s.outputs + (args.input_in_step ? s.input : 0);
  const auto inputs = member.parts(s.hidden, k.lanes, near_panels(k, s.input), s.batch, room),
             steps = member.parts(s.hidden, k.lanes, near_panels(k, step_depth), s.batch, room),
             projections = member.parts(s.outputs, k.lanes, near_panels(k, s.hidden), s.batch, room);
  for (int64_t step = 0; step < s.steps; ++step) {
    const int64_t t = args.reverse ? s.steps - 1 - step : step;
    if (!args.input_in_step && step % member.plan.chunk == 0) {
      const int64_t count = std::min(member.plan.chunk, s.steps - step);
      const Chunk chunk = args.reverse ? Chunk{t + 1 - count, t + 1} : Chunk{t, t + count};
      for (const Share<T>& part : inputs) k.input_gates(args, chunk, part);
    }
    for (const Share<T>& part : steps) k.forward_step(args, t, part);
    if (args.recompute) continue;  // y is known, and cells are each thread's own
    if (args.weight_hr) {
      barriers.meet_columns(member);
      for (const Share<T>& part : projections) k.project(args, t, part);
    }
    barriers.meet_columns(member);
  }
}

// The states after each row's last step, which are h0 and c0 for a row of no steps.
template <class T, class W>
void last_states(const ForwardArgs<T, W>& args) {
  const Sizes& s = args.size;
  for (int64_t row = 0; row < s.batch; ++row) {
    const int64_t length = args.rows.length[row], last = args.reverse ? 0 : length - 1;
    const T* const h = length ? args.y + (last * s.batch + row) * args.y_stride : args.h0 + row * s.outputs;
    const T* const c = length ? args.c + last * args.c_step + row * args.c_stride : args.c0 + row * s.hidden;
    std::copy_n(h, s.outputs, args.h_n + row * s.outputs);
    if (c != args.c_n + row * s.hidden) std::copy_n(c, s.hidden, args.c_n + row * s.hidden);
  }
}

// Pointers to dense rows.
template <class T>
std::vector<const T*> dense(const T* first, int64_t count, int64_t stride) {
  std::vector<const T*> rows(count);
  for (int64_t r = 0; r < count; ++r) rows[r] = first + r * stride;
  return rows;
}

// Whole vectors of every instruction set.
int64_t padded(int64_t n) {
  return (n + 15) / 16 * 16;
}

// Elements of a matrix in panels, whatever the instruction set.
int64_t panels(int64_t depth, int64_t columns) {
  return depth * ((columns + 63) / 64 * 64);
}

// Places the parts of BackwardWork one after another; the end of the last is how many elements they take.
template <class T>
BackwardWork<T> lay_out(const Sizes& s, int64_t chunk, bool projected, T* memory, int64_t* total) {
  const int64_t N = s.batch, H = s.hidden, P = s.outputs, G = 4 * H, terms = chunk * N, p = projected ? P : 0;
  int64_t used = 0;
  const auto take = [&](int64_t count) {
    T* const begin = memory + used;
    used += padded(count);
    return begin;
  };
  BackwardWork<T> work{.panels_ih = take(panels(G, s.input)),
                       .panels_hh = take(panels(G, P)),
                       .panels_hr = take(panels(p, H)),
                       .after = take(N * G),
                       .first = take(N * G),
                       .grad_gates = take(terms * G),
                       .grad_p = take(terms * p),
                       .h = take(projected ? terms * H : 0),
                       .grad_gates_t = take(terms * G),
                       .grad_p_t = take(terms * p),
                       .panels_x = take(panels(terms, s.input)),
                       .panels_before = take(panels(terms, P)),
                       .panels_h = take(projected ? panels(terms, H) : 0)};
  *total = used;
  return work;
}

// The state before step t of each row of the chunk.
template <class T>
std::vector<const T*> states_before(const BackwardArgs<T>& args, const Chunk& chunk) {
  const int64_t N = args.size.batch, P = args.size.outputs;
  std::vector<const T*> before;
  before.reserve((chunk.end - chunk.begin) * N);
  for (int64_t t = chunk.begin; t < chunk.end; ++t)
    for (int64_t row = 0; row < N; ++row) {
      const int64_t length = args.rows.length[row], begin = args.reverse ? t + 1 : t;
      const bool enters = args.rows.resets && begin < length && args.rows.resets[begin * N + row];
      if (t >= length || enters)
        before.push_back(args.zeros);
      else if (t == (args.reverse ? length - 1 : 0))
        before.push_back(args.h0 + row * P);
      else
        before.push_back(args.y + ((args.reverse ? t + 1 : t - 1) * N + row) * args.y_stride);
    }
  return before;
}

// What one member does of a backward pass.
template <class T>
class BackwardMember {
 public:
  BackwardMember(const Kernel<T, T>& k, const BackwardArgs<T>& args, const Member& member, Barriers& barriers)
      : k_(k), args_(args), s_(args.size), member_(member), barriers_(barriers) {
    int64_t unused;
    work_ = lay_out(s_, member.plan.chunk, args.weight_hr != nullptr, args.workspace, &unused);
  }

  void run() {
    pack_weights();
    const Chunk rows = own(s_.batch);
    std::fill(work_.first + rows.begin * G(), work_.first + rows.end * G(), T(0));
    barriers_.meet_group(member_);
    for (int64_t done = 0; done < s_.steps; done += member_.plan.chunk) {
      const int64_t count = std::min(member_.plan.chunk, s_.steps - done);
      const Chunk chunk =
          args_.reverse ? Chunk{done, done + count} : Chunk{s_.steps - done - count, s_.steps - done};
      recur(chunk);
      barriers_.meet_group(member_);
      gradient_of_input(chunk);
      arrange_factors(chunk);
      barriers_.meet_group(member_);
      gradients_of_weights(chunk, done > 0);
    }
    if (args_.grad_h0)
      multiply(work_.first, G(), s_.batch, work_.panels_hh, s_.outputs, kPanelTerms, false, args_.grad_h0);
  }

 private:
  // Terms summed in a row over the rows of a chunk: nn.LSTM, which adds up one product per step, has the
  // rounding error of sums of N terms.
  static constexpr int64_t kRows = 64;

  int64_t G() const { return 4 * s_.hidden; }
  Chunk own(int64_t n) const { return part(n, member_.in_group(), member_.group_size()); }

  // This member's part of out [rows, columns] = a [rows, depth] times a matrix in panels, or += with `adds`:
  // some of the rows, or of the panels where rows are few. `weight`, if given, has not been packed yet: then
  // each part of it is, while it is near.
  void multiply(const T* a, int64_t depth, int64_t rows, T* panels, int64_t columns, int64_t piece, bool adds,
                T* out, const T* weight = nullptr) {
    const int64_t C = k_.panel_columns, count = blocks(columns, C), near = near_panels(k_, depth);
    const bool by_rows = !weight && (rows >= kRowsOfPanel * member_.group_size() || !divides(columns));
    const Chunk row = by_rows ? own(rows) : Chunk{0, rows},
                own_panels = by_rows ? Chunk{0, count} : own(count);
    T* part = panels + own_panels.begin * C * depth;
    for (int64_t begin = own_panels.begin; begin < own_panels.end; begin += near) {
      const int64_t end = std::min(begin + near, own_panels.end), column = begin * C;
      if (weight)
        k_.pack_panels(dense(weight + column, depth, columns).data(), depth, columns - column, 0, end - begin,
                       part);
      k_.product(a + row.begin * depth, depth, row.end - row.begin, part, std::min(end * C, columns) - column,
                 depth, piece, adds, out + row.begin * columns + column, columns);
      if (!weight) part += near * C * depth;
    }
  }
  // Whether each member has panels of its own.
  bool divides(int64_t columns) const { return blocks(columns, k_.panel_columns) >= member_.group_size(); }
  // Whether one product alone reads a weight, by panels: to pack it before would be to write it and read it
  // again.
  bool packs_late(int64_t columns) const { return s_.steps <= member_.plan.chunk && divides(columns); }

  void pack(const std::vector<const T*>& rows, int64_t columns, T* panels) {
    const Chunk mine = own(blocks(columns, k_.panel_columns));
    k_.pack_panels(rows.data(), static_cast<int64_t>(rows.size()), columns, mine.begin, mine.end, panels);
  }

  void pack_weights() {
    if (args_.grad_x && !packs_late(s_.input))
      pack(dense(args_.weight_ih, G(), s_.input), s_.input, work_.panels_ih);
    if (args_.grad_h0 || s_.steps > 1)
      pack(dense(args_.weight_hh, G(), s_.outputs), s_.outputs, work_.panels_hh);
    if (args_.weight_hr) pack(dense(args_.weight_hr, s_.outputs, s_.hidden), s_.hidden, work_.panels_hr);
  }

  void recur(const Chunk& chunk) {
    const int64_t N = s_.batch, C = k_.panel_columns, near_hh = near_panels(k_, G());
    const auto projections = member_.parts<T>(s_.outputs, C, near_hh, N, nullptr);
    const auto steps =
        member_.parts<T>(s_.hidden, C, args_.weight_hr ? near_panels(k_, s_.outputs) : near_hh, N, nullptr);
    for (int64_t step = chunk.begin; step < chunk.end; ++step) {
      const int64_t t = args_.reverse ? step : chunk.begin + chunk.end - 1 - step;
      if (args_.weight_hr) {
        for (const Share<T>& part : projections) k_.backward_project(args_, work_, chunk, t, part);
        barriers_.meet_columns(member_);
      }
      for (const Share<T>& part : steps) k_.backward_step(args_, work_, chunk, t, part);
      barriers_.meet_columns(member_);
    }
  }

  void gradient_of_input(const Chunk& chunk) {
    const int64_t N = s_.batch, edge = args_.reverse ? chunk.end - 1 : chunk.begin;
    const T* const last = work_.grad_gates + (edge - chunk.begin) * N * G();
    const Chunk rows = own(N);
    std::copy(last + rows.begin * G(), last + rows.end * G(), work_.after + rows.begin * G());
    if (args_.grad_x)
      multiply(work_.grad_gates, G(), (chunk.end - chunk.begin) * N, work_.panels_ih, s_.input, kPanelTerms,
               args_.adds_to_grad_x, args_.grad_x + chunk.begin * N * s_.input,
               packs_late(s_.input) ? args_.weight_ih : nullptr);
  }

  // Both factors of the weights' gradients: sums run over the rows of the chunk.
  void arrange_factors(const Chunk& chunk) {
    const int64_t N = s_.batch, H = s_.hidden, P = s_.outputs, terms = (chunk.end - chunk.begin) * N;
    const auto turn = [&](const T* rows, int64_t columns, T* out) {
      const Chunk mine = own(columns);
      k_.transpose(dense(rows, terms, columns).data(), terms, mine.begin, mine.end, out);
    };
    if (args_.grad_weight_ih || args_.grad_weight_hh || args_.grad_bias)
      turn(work_.grad_gates, G(), work_.grad_gates_t);
    if (args_.grad_weight_ih)
      pack(dense(args_.x + chunk.begin * N * s_.input, terms, s_.input), s_.input, work_.panels_x);
    if (args_.grad_weight_hh) pack(states_before(args_, chunk), P, work_.panels_before);
    if (args_.grad_weight_hr) {
      turn(work_.grad_p, P, work_.grad_p_t);
      pack(dense<T>(work_.h, terms, H), H, work_.panels_h);
    }
  }

  void gradients_of_weights(const Chunk& chunk, bool adds) {
    const int64_t terms = (chunk.end - chunk.begin) * s_.batch;
    const auto add = [&](const T* grad, int64_t rows, T* factor, int64_t columns, T* out) {
      if (out) multiply(grad, terms, rows, factor, columns, kRows, adds, out);
    };
    add(work_.grad_gates_t, G(), work_.panels_x, s_.input, args_.grad_weight_ih);
    add(work_.grad_gates_t, G(), work_.panels_before, s_.outputs, args_.grad_weight_hh);
    add(work_.grad_p_t, s_.outputs, work_.panels_h, s_.hidden, args_.grad_weight_hr);
    const Chunk mine = own(G());
    for (int64_t j = mine.begin; args_.grad_bias && j < mine.end; ++j) {
      const T* const grads = work_.grad_gates_t + j * terms;
      T sums[8] = {};  // of fewer terms each: less rounding
      int64_t i = 0;
      for (; i + 8 <= terms; i += 8)
        for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += grads[i + lane];
      for (; i < terms; ++i) sums[i % 8] += grads[i];
      args_.grad_bias[j] = (adds ? args_.grad_bias[j] : T(0)) + std::accumulate(sums, sums + 8, T(0));
    }
  }

  const Kernel<T, T>& k_;
  const BackwardArgs<T>& args_;
  const Sizes& s_;
  const Member member_;
  Barriers& barriers_;
  BackwardWork<T> work_;
};

}  // namespace

// Tiles of bfloat16 take the place of 16 floats at least.
int64_t packed_weights(int64_t depth, int64_t hidden) {
  return panels(std::max<int64_t>(depth, 16), 4 * ((hidden + 15) / 16 * 16));
}

template <class T, class W>
int64_t forward_room(const Sizes& size, const Plan& plan) {
  return plan.packs ? plan.threads() * kernel<T, W>().room(size) : 0;
}

int64_t backward_workspace(const Sizes& size, int64_t chunk, bool projected) {
  int64_t total;
  lay_out<float>(size, chunk, projected, nullptr, &total);
  return total;
}

template <class T, class W>
void forward(const ForwardArgs<T, W>* directions, int64_t count, T* room, const Plan& planned) {
  const Kernel<T, W>& k = kernel<T, W>();
  Barriers barriers(planned);
  run_team(planned.threads(), [&](int64_t index, int64_t team) {
    const Plan plan = for_team(planned, team);
    const Member member(plan, index);
    for (int64_t d = member.group; d < count; d += plan.groups)
      forward_direction(k, directions[d], member, room + index * k.room(directions[d].size), barriers);
  });
  for (int64_t d = 0; d < count; ++d)
    if (!directions[d].recompute) last_states(directions[d]);
}

template <class T>
void backward(const BackwardArgs<T>& args, const Plan& planned) {
  const Kernel<T, T>& k = kernel<T, T>();
  Barriers barriers(planned);
  run_team(planned.threads(), [&](int64_t index, int64_t team) {
    BackwardMember<T>(k, args, Member(for_team(planned, team), index), barriers).run();
  });
}

template int64_t forward_room<double, double>(const Sizes&, const Plan&);
template void forward(const ForwardArgs<double, double>*, int64_t, double*, const Plan&);
template int64_t forward_room<float, float>(const Sizes&, const Plan&);
template void forward(const ForwardArgs<float, float>*, int64_t, float*, const Plan&);
template int64_t forward_room<float, BFloat16>(const Sizes&, const Plan&);
template void forward(const ForwardArgs<float, BFloat16>*, int64_t, float*, const Plan&);
template int64_t forward_room<float, Half>(const Sizes&, const Plan&);
template void forward(const ForwardArgs<float, Half>*, int64_t, float*, const Plan&);
template void backward(const BackwardArgs<float>&, const Plan&);
template void backward(const BackwardArgs<double>&, const Plan&);

}  // namespace fusedlstm::cpu
