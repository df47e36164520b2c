// The work that the wrapper (noisy_replicas.cpp) hands to the kernel (noisy_replicas_kernel.cu). No torch here.
#pragma once

#include <cuda_runtime_api.h>

#include "../rules/types.h"
#include "launch.h"

namespace smoothfast {

struct ReplicaArgs {
  const void* images;  // [S, C, plane], uint8 or float32
  void* out;           // [R, C, plane] or [R, plane, C]
  const int64_t* slots;
  const int64_t* image_ids;
  const int64_t* sample_ids;
  const int64_t* key;    // [2] seed and stream; on the device, so that a captured graph can be replayed with others
  const int64_t* high;   // lattice: [sigmas, 2 reach]
  const int64_t* low;    // lattice: [sigmas, 2 reach]
  const int32_t* guide;  // lattice: [sigmas, entries]
  const float* sigma;    // gaussian: [sigmas]
  const float* scale;    // [C]
  const float* shift;    // [C]
  uint32_t units, channels, plane, chunks, steps;
  int32_t sigmas, reach, entries, guide_shift, guide_bytes;
  bool channels_last, interleaved, vectorized;
  float least, most;  // clip limits, infinite where nothing is clipped
};

void noisy_replicas(const ReplicaArgs& args, const Launch& launch, bool lattice, bool float_images, Dtype dtype,
                    cudaStream_t stream);

}  // namespace smoothfast
