// As bf16_kernel.cu, for networks of twice the width, of which a multiprocessor has room for one sample.
#include "bf16.cuh"
#include "network.cuh"

namespace smoothfast {
namespace fused {
namespace mma {
namespace {

__global__ void __launch_bounds__(kThreads, 1) bf16_wide_votes_kernel(const VotesArgs args) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ uint4 shared[];
  take_unit<bf16::Arithmetic<2 * kWidth>, 1>(args, reinterpret_cast<char*>(shared));
#endif
}

}  // namespace

cudaError_t bf16_wide_votes(const VotesArgs& args, const Launch& launch, cudaStream_t stream) {
  return launch_votes(bf16_wide_votes_kernel, args, launch, stream);
}

}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
