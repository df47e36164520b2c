// A CIFAR ResNet in integers, from images to votes: the same bits on every device, and as on CPUs.
#include "integers.cuh"
#include "network.cuh"

namespace smoothfast {
namespace fused {
namespace mma {
namespace {

// With one sample two blocks share a multiprocessor: then a thread has 128 registers.
template <int SAMPLES>
__global__ void __launch_bounds__(kThreads, SAMPLES == 1 ? 2 : 1) integer_votes_kernel(const VotesArgs args) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ uint4 shared[];
  take_unit<integers::Arithmetic, SAMPLES>(args, reinterpret_cast<char*>(shared));
#endif
}

}  // namespace

cudaError_t integer_votes(const VotesArgs& args, int samples, const Launch& launch, cudaStream_t stream) {
  const auto kernel = samples == 1 ? integer_votes_kernel<1> : integer_votes_kernel<2>;
  return launch_votes(kernel, args, launch, stream);
}

}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
