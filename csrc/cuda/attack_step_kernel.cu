// linf: a thread takes an element. l2: a block takes an image, a thread of it a lane of its sums.
#include "attack_step.h"

namespace smoothfast {
namespace {

static_assert(kThreads == kLanes);

__global__ void __launch_bounds__(kThreads) linf_kernel(const AttackArgs args) {
#pragma unroll 1
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < args.units; i += int64_t{gridDim.x} * kThreads)
    args.adversarial[i] = linf_step(args.adversarial[i], args.images[i], args.gradients[i], args.attack);
}

// Of the lanes, in the order of rules/attack.h.
__device__ double sum(double lane) {
  __shared__ double lanes[kLanes];
  lanes[threadIdx.x] = lane;
  __syncthreads();
#pragma unroll 1
  for (int half = kLanes / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
    __syncthreads();
  }
  const double total = lanes[0];
  __syncthreads();  // before the next sum writes
  return total;
}

__global__ void __launch_bounds__(kThreads) l2_kernel(const AttackArgs args) {
  for (int64_t unit = blockIdx.x; unit < args.units; unit += gridDim.x) {
    float* adversarial = args.adversarial + unit * args.elements;
    const float* image = args.images + unit * args.elements;
    const float* gradient = args.gradients + unit * args.elements;
    double squares = 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < args.elements; i += kLanes) {
      const double slope = gradient[i];
      squares += slope * slope;
    }
    const double step = l2_step(sum(squares), args.attack);
    squares = 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < args.elements; i += kLanes) {
      const double shift = l2_shift(adversarial[i], image[i], gradient[i], step);
      squares += shift * shift;
    }
    const double factor = l2_factor(sum(squares), args.attack);
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < args.elements; i += kLanes) {
      const double shift = l2_shift(adversarial[i], image[i], gradient[i], step);
      adversarial[i] = l2_shifted(image[i], shift * factor, args.attack);
    }
  }
}

}  // namespace

void attack_step(const AttackArgs& args, const Launch& launch, bool l2, cudaStream_t stream) {
  const auto kernel = l2 ? l2_kernel : linf_kernel;
  kernel<<<launch.grid, kThreads, launch.shared, stream>>>(args);
}

}  // namespace smoothfast
