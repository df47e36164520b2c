// A thread adds up a run of neighbours over the rows of an image, in their order.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "replica_sum.h"

namespace smoothfast {
namespace {

__device__ __forceinline__ float value(float stored) { return stored; }
__device__ __forceinline__ float value(__nv_bfloat16 stored) { return __bfloat162float(stored); }
__device__ __forceinline__ float value(__half stored) { return __half2float(stored); }

template <class Stored, int kWidth>
struct alignas(sizeof(Stored) * kWidth < kVectorBytes ? sizeof(Stored) * kWidth : kVectorBytes) Run {
  Stored at[kWidth];
};

template <class Stored, int kWidth>
__global__ void __launch_bounds__(kThreads) replica_sum_kernel(const SumArgs args) {
  const int64_t elements = int64_t{args.channels} * args.plane;
#pragma unroll 1
  for (uint32_t unit = blockIdx.x * kThreads + threadIdx.x; unit < args.units; unit += gridDim.x * kThreads) {
    const uint32_t image = unit / args.runs, begin = (unit - image * args.runs) * kWidth;
    const Stored* gradients = static_cast<const Stored*>(args.gradients);
    float sums[kWidth] = {};
#pragma unroll 1
    for (int64_t i = args.first[image]; i < args.first[image + 1]; ++i) {
      const auto run = *reinterpret_cast<const Run<Stored, kWidth>*>(gradients + args.rows[i] * elements + begin);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[j] += value(run.at[j]);
    }
    float* out = args.out + image * elements;
    Run<float, kWidth> scaled;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const uint32_t at = begin + j, channel = args.channels_last ? at % args.channels : at / args.plane;
      scaled.at[j] = args.scale[channel] * sums[j];
      if (args.channels_last) out[channel * args.plane + at / args.channels] = scaled.at[j];
    }
    if (!args.channels_last) *reinterpret_cast<Run<float, kWidth>*>(out + begin) = scaled;
  }
}

template <class Stored>
void start(const SumArgs& args, const SumLaunch& launch, cudaStream_t stream) {
  constexpr int widest = kVectorBytes / sizeof(Stored);
  const auto kernel = launch.width == 1 ? replica_sum_kernel<Stored, 1> : replica_sum_kernel<Stored, widest>;
  kernel<<<launch.launch.grid, kThreads, launch.launch.shared, stream>>>(args);
}

}  // namespace

void replica_sum(const SumArgs& args, const SumLaunch& launch, Dtype dtype, cudaStream_t stream) {
  if (dtype == Dtype::f32)
    start<float>(args, launch, stream);
  else if (dtype == Dtype::bf16)
    start<__nv_bfloat16>(args, launch, stream);
  else
    start<__half>(args, launch, stream);
}

}  // namespace smoothfast
