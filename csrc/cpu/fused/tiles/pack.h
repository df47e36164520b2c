// A network as the kernels read it: weights in bf16, in tiles in the order in which a program takes them, then biases
// and the linear layer.
#pragma once

#include <vector>

#include "program.h"

namespace smoothfast {
namespace fused {
namespace tiles {

// Parameters are those of the plan; linear [classes, width], linear_bias [classes]; `packed` has the bytes that the
// program says, with or without what gradients need (`backward`).
void pack(const Program& program, const std::vector<Parameters>& parameters, const float* linear,
          const float* linear_bias, bool backward, char* packed);

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
