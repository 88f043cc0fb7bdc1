// The operators: one call is one layer, all its directions. Shapes and checks are in layer.h, kernels
// in cpu/ and cuda/, autograd in fusedlstm/ops.py, fake kernels in fusedlstm/fakes.py.
#include "stable.h"

STABLE_TORCH_LIBRARY(fusedlstm, m) {
  m.def(
      "lstm_inference(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? lengths, Tensor? resets,"
      " Tensor? batch_sizes, bool allow_tf32)"
      " -> (Tensor y, Tensor h_n, Tensor c_n)");
  m.def(
      "lstm_forward(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? lengths, Tensor? resets,"
      " Tensor? batch_sizes, bool allow_tf32, bool keep_cells, bool keep_gates)"
      " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)");
  // What lstm_forward did not keep, from its output: no recurrence but that of the elementwise cell update.
  m.def(
      "lstm_recompute(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? lengths, Tensor? resets,"
      " Tensor? batch_sizes, bool allow_tf32, Tensor y) -> (Tensor cells, Tensor gates)");
  m.def(
      "lstm_backward(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cells,"
      " Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? lengths, Tensor? resets,"
      " Tensor? batch_sizes, bool allow_tf32,"
      " Tensor y, Tensor cells, Tensor gates, bool need_x, bool need_h0, int[] need_weights)"
      " -> (Tensor grad_x, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)");
}
