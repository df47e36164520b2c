// The work that the wrapper (perturb_weights.cpp) hands to the kernel (perturb_weights_kernel.cu). No torch here.
#pragma once

#include <cuda_runtime_api.h>

#include "../rules/types.h"
#include "launch.h"

namespace smoothfast {

struct PerturbArgs {
  const float* weights;   // [tiles, kTile]
  const float* scales;    // [tiles, kTile]
  const float* factors;   // [rank, tiles, kTile]
  const int64_t* places;  // [2, tiles]: layers, and the numbers of the tiles in them
  const int64_t* pass_numbers;
  const int64_t* key;  // [2] seed and tag
  void* out;           // [passes, tiles, kTile]
  int64_t tiles;
  uint32_t units, passes, rank;
};

void perturb_weights(const PerturbArgs& args, const Launch& launch, Dtype dtype, cudaStream_t stream);

}  // namespace smoothfast
