#include "caches.h"

#include <unistd.h>

namespace fusedlstm::cpu {
namespace {

// Of a processor that does not say; Zen has as much, and others have more.
constexpr int64_t kL2 = 512 << 10;

int64_t l2_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  if (const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return kL2;
}

}  // namespace

int64_t cached_weight_bytes() {
  static const int64_t bytes = l2_bytes() / 2;
  return bytes;
}

}  // namespace fusedlstm::cpu
