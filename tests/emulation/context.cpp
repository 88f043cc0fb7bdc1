// The CUDA layer's Context on the host: no stream, a small device, products by plain loops. Sums are float64,
// so that the accuracy tests see the rounding of the layer and not that of a library which is not here.
#define FUSEDLSTM_EMULATED_DEVICE "emulation/device.h"
#include "cuda/context.h"

#include <atomic>

#include "cuda/cells.cuh"

namespace fusedlstm::cuda {

struct Context::Implementation {
  Type type;
};

Context::Context(int, Type type, bool) : implementation_(new Implementation{type}) {}
Context::~Context() = default;

Stream Context::stream() const {
  return nullptr;
}

Limits Context::limits() const {
  return {.multiprocessors = static_cast<int>(emulation::multiprocessors()),
          .threads_per_multiprocessor = 1024,
          .registers_per_multiprocessor = 65'536,
          .shared_memory = static_cast<int>(emulation::kSharedMemoryLimit),
          .compute_capability = 90};
}

namespace {

std::atomic<uint64_t> products = 0;

template <class IO, class Out>
void multiply(const Product& p) {
  for (int64_t i = 0; i < p.batch; ++i) {
    const IO* const a = static_cast<const IO*>(p.a.data) + i * p.a.next;
    const IO* const b = static_cast<const IO*>(p.b.data) + i * p.b.next;
    Out* const c = static_cast<Out*>(p.c) + i * p.c_next;
    const int64_t a_row = p.a.transposed ? 1 : p.a.stride, a_column = p.a.transposed ? p.a.stride : 1;
    const int64_t b_row = p.b.transposed ? 1 : p.b.stride, b_column = p.b.transposed ? p.b.stride : 1;
    for (int64_t row = 0; row < p.m; ++row)
      for (int64_t column = 0; column < p.n; ++column) {
        Out& out = c[row * p.c_stride + column];
        double sum = p.accumulate ? widen(out) : 0;
        for (int64_t k = 0; k < p.k; ++k)
          sum += double{widen(a[row * a_row + k * a_column])} * widen(b[k * b_row + column * b_column]);
        narrow(static_cast<typename Compute<IO>::type>(sum), out);
      }
  }
}

}  // namespace

void Context::multiply(const Product& product) const {
  ++products;
  with_type(implementation_->type, [&]<class IO>(IO) {
    if (product.wide) {
      cuda::multiply<IO, typename Compute<IO>::type>(product);
    } else {
      cuda::multiply<IO, IO>(product);
    }
  });
}

}  // namespace fusedlstm::cuda

// For the tests: each starts the count of launches anew, so that its schedules do not depend on those before
// it.
extern "C" __attribute__((visibility("default"))) void fusedlstm_emulation_set_seed(uint64_t seed) {
  fusedlstm::emulation::set_seed(seed);
  fusedlstm::cuda::products = 0;
}
extern "C" __attribute__((visibility("default"))) void fusedlstm_emulation_set_multiprocessors(
    unsigned count) {
  fusedlstm::emulation::set_multiprocessors(count);
}
extern "C" __attribute__((visibility("default"))) void fusedlstm_emulation_refuse_cooperative_launches(
    bool refuse) {
  fusedlstm::emulation::refuse_cooperative_launches(refuse);
}
// Kernels and products that the device was given since.
extern "C" __attribute__((visibility("default"))) uint64_t fusedlstm_emulation_work() {
  return fusedlstm::emulation::launches() + fusedlstm::cuda::products;
}
