// A CIFAR ResNet in bfloat16, from images to votes. Tensor cores round sums by generation, so that logits are the same
// bits on devices of one only.
#include "bf16.cuh"
#include "network.cuh"

namespace smoothfast {
namespace fused {
namespace mma {
namespace {

// With one sample two blocks share a multiprocessor: then a thread has 128 registers.
template <int SAMPLES>
__global__ void __launch_bounds__(kThreads, SAMPLES == 1 ? 2 : 1) bf16_votes_kernel(const VotesArgs args) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ uint4 shared[];
  take_unit<bf16::Arithmetic<kWidth>, SAMPLES>(args, reinterpret_cast<char*>(shared));
#endif
}

}  // namespace

cudaError_t bf16_votes(const VotesArgs& args, int samples, const Launch& launch, cudaStream_t stream) {
  const auto kernel = samples == 1 ? bf16_votes_kernel<1> : bf16_votes_kernel<2>;
  return launch_votes(kernel, args, launch, stream);
}

}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
