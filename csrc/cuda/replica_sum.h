// The work that the wrapper (replica_sum.cpp) hands to the kernel (replica_sum_kernel.cu). No torch here.
#pragma once

#include <cuda_runtime_api.h>

#include "../rules/types.h"
#include "launch.h"

namespace smoothfast {

struct SumArgs {
  const void* gradients;  // [R, C, plane] or [R, plane, C]
  const int64_t* rows;    // those of image s, in order: rows[first[s]] .. rows[first[s + 1] - 1]
  const int64_t* first;   // [images + 1]
  const float* scale;     // [C]
  float* out;             // [images, C, plane]
  uint32_t units, runs;   // of neighbours, in all and of an image
  uint32_t channels, plane;
  bool channels_last;
};

void replica_sum(const SumArgs& args, const SumLaunch& launch, Dtype dtype, cudaStream_t stream);

}  // namespace smoothfast
