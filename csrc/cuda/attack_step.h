// The work that the wrapper (attack_step.cpp) hands to the kernel (attack_step_kernel.cu). No torch here.
#pragma once

#include <cuda_runtime_api.h>

#include "../rules/attack.h"
#include "launch.h"

namespace smoothfast {

struct AttackArgs {
  float* adversarial;  // [images, elements], and the others
  const float* images;
  const float* gradients;
  int64_t units, elements;
  Attack attack;
};

void attack_step(const AttackArgs& args, const Launch& launch, bool l2, cudaStream_t stream);

}  // namespace smoothfast
