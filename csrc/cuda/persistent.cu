// Persistent launches by type.
#include "persistent.cuh"

namespace fusedlstm::cuda {
namespace {

template <class Launched>
bool with_persistent_type(Type io, const Launched& launched) {
  bool result = false;
  with_type(io, [&]<class IO>(IO value) {
    if constexpr (std::is_same_v<IO, double>) {
      throw std::logic_error("fusedlstm: there is no persistent kernel for float64");
    } else {
      result = launched(value);
    }
  });
  return result;
}

}  // namespace

bool forward_persistent(const PersistentForwardArgs& args, Type io, Stream stream) {
  return with_persistent_type(io, [&]<class IO>(IO) { return launch_forward<IO>(args, stream); });
}

bool backward_persistent(const PersistentBackwardArgs& args, Type io, Stream stream) {
  return with_persistent_type(io, [&]<class IO>(IO) { return launch_backward<IO>(args, stream); });
}

}  // namespace fusedlstm::cuda
