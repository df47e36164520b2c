// Forward passes of CIFAR ResNets and gradients by their images by Winograd's algorithm, with float32 or bf16 products.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"

namespace smoothfast {
namespace fused {
namespace winograd {

// Whether there are kernels of these numbers here: of float32 everywhere, of bf16 with AVX512-BF16.
bool available(Numbers numbers);

// A network as the kernels read it: parameters are those of the plan; linear [classes, width], linear_bias [classes];
// `packed` has the bytes that the program says, with or without what gradients need (`backward`).
void pack(const Shape& shape, Numbers numbers, const std::vector<Parameters>& parameters, const float* linear,
          const float* linear_bias, bool backward, char* packed);

// Logits [samples, classes] of replicas [samples, 32, 32, 3], in bf16 where the first layer is; and where labels
// [samples] are given, gradients [samples, 3, 32, 32] of the cross-entropy by the replicas. A pure function of each
// sample.
void run(const Shape& shape, Numbers numbers, const char* packed, const char* replicas, int64_t samples, float* logits,
         const int64_t* labels, float* gradients);

}  // namespace winograd
}  // namespace fused
}  // namespace smoothfast
