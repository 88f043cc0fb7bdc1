// An operator with the arguments and results of lstm_inference that computes nothing: what a call costs by itself.
#include <optional>
#include <tuple>
#include <vector>

#include "../csrc/stable.h"

namespace {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> bare(const Tensor& x, const Tensor& h0, const Tensor& c0,
                                        const std::vector<Tensor>& /*weights*/,
                                        const std::optional<Tensor>& /*lengths*/,
                                        const std::optional<Tensor>& /*resets*/,
                                        const std::optional<Tensor>& /*batch_sizes*/, bool /*allow_tf32*/) {
  using torch::stable::new_empty;
  return {new_empty(x, {x.size(0), x.size(1), h0.size(2)}), new_empty(x, h0.sizes()), new_empty(x, c0.sizes())};
}

}  // namespace

STABLE_TORCH_LIBRARY(fusedlstm_bench, m) {
  m.def(
      "bare(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? lengths, Tensor? resets,"
      " Tensor? batch_sizes, bool allow_tf32)"
      " -> (Tensor y, Tensor h_n, Tensor c_n)");
}
STABLE_TORCH_LIBRARY_IMPL(fusedlstm_bench, CPU, m) { m.impl("bare", TORCH_BOX(&bare)); }
