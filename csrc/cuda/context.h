// The caller's device and stream, and matrix products on them with a precision of our own choice.
#pragma once

#include <cstdint>
#include <memory>

#include "plan.h"
#include "stream.h"

namespace fusedlstm::cuda {

// Row-major; `transposed` means that the product takes the transpose of what is stored.
struct Matrix {
  const void* data;
  int64_t stride;  // elements from a row to the next
  bool transposed = false;
  int64_t next = 0;  // elements from a matrix of the batch to the next
};

// c [m, n] = a [m, k] b [k, n], or c += a b, for each matrix of a batch.
struct Product {
  int64_t m, n, k;
  Matrix a, b;  // in the layer's type
  void* c;
  int64_t c_stride, c_next = 0;
  bool wide = false;        // c is in the compute type instead of the layer's type
  bool accumulate = false;  // +=
  int64_t batch = 1;
};

class Context {
 public:
  // `device` is the index of a GPU, which stays the current one for as long as the Context lives. With `tf32`
  // products of float32 may round their operands to TF32, without it they never do. Sums of 16-bit types are
  // float32 throughout.
  Context(int device, Type type, bool tf32);
  ~Context();

  Stream stream() const;
  Limits limits() const;
  void multiply(const Product& product) const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace fusedlstm::cuda
