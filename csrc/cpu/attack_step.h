// The work that the wrapper (attack_step.cpp) hands to the kernel body (attack_step_kernel.h). No torch here.
#pragma once

#include <cstdint>

#include "../rules/attack.h"

namespace smoothfast {

struct AttackStep {
  float* adversarial;  // [N, elements], and the others
  const float* images;
  const float* gradients;
  int64_t elements;
  Attack attack;
};

using AttackKernel = void (*)(const AttackStep&, int64_t begin, int64_t end);

struct AttackKernels {
  AttackKernel linf;  // elements [begin, end) of all images
  AttackKernel l2;    // images [begin, end)
};

}  // namespace smoothfast
