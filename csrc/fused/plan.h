// A CIFAR ResNet as a list of layers: geometry, without arithmetic, for all devices. An arithmetic is a folder of a
// backend that packs a plan, runs it forwards and, where it can, backwards.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace smoothfast {
namespace fused {

// A network: 3x3 to widths[0], then three stages of basic blocks, the last two of which begin with a stride of 2; mean
// over pixels, linear. Images are 3x32x32.
struct Shape {
  std::array<int64_t, 3> widths;
  int64_t blocks;  // of a stage
  int64_t classes;
};

// Empty, or why no kernels take this shape; those of tiles take fewer.
const char* refusal(const Shape& shape);

constexpr int64_t kImageElements = 3 * 32 * 32;

enum class Part {
  image,     // 3x3 of the image; ReLU
  shortcut,  // 1x1 of what goes into a block, where that changes its shape
  first,     // 3x3 of what goes into a block; ReLU
  second     // 3x3 of that, added to the shortcut or to what goes into the block; ReLU
};

// A convolution and its batch norm.
struct Layer {
  Part part;
  int stage;  // whose map it makes: 32, 16 or 8 pixels wide
  int64_t inputs, outputs;
  int size, stride;  // of the kernel
};

// In the order of computation; a shortcut comes before the two 3x3 of its block.
using Plan = std::vector<Layer>;

Plan plan_of(const Shape& shape);

// What a layer has learned: weights [outputs, inputs, size, size], by which outputs are multiplied, and what is then
// added. The bias of a shortcut is part of that of the layer that is added to it.
struct Parameters {
  const float* weights;
  const double *gain, *bias;
};

// Weights [outputs, inputs, size, size] of a layer times its gains.
std::vector<float> folded_weights(const Layer& layer, const Parameters& parameters);

}  // namespace fused
}  // namespace smoothfast
