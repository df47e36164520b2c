// The numbers of a CIFAR ResNet in integers, as it is handed to packers. They were checked: no sum overflows.
//
// A map is uint8, a weight int8, a sum int32 and exact. A sum becomes a number of the next map as
// clamp(round(fma(float32(sum), scale, bias)), 0, 255), where each of the conversion, the fused multiply-add and
// `round` rounds once, to nearest, ties to even.
#pragma once

#include <cstdint>

namespace smoothfast {
namespace fused {
namespace integer {

// What a layer of the plan has: weights int16 [outputs, 3, 3, 3] of the image, else int8 [outputs, inputs, size, size];
// scale and bias [outputs], but for shortcuts; the bias of the image [3 rows][3 pixels][outputs], by what is outside;
// of the second of a block int32 shifts, and where the block has no shortcut int8 multipliers.
struct Numbers {
  const void* weights;
  const float *scale, *bias;
  const int8_t* multipliers;
  const int32_t* shifts;
};

}  // namespace integer
}  // namespace fused
}  // namespace smoothfast
