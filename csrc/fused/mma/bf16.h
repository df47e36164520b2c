// A CIFAR ResNet in bfloat16 as tensor cores take it: layers in the order of computation, each a record, and the last,
// linear one, which stays float32. A record has what sums begin with, and then weights as fragments.
#pragma once

#include <vector>

#include "map.h"

namespace smoothfast {
namespace fused {
namespace mma {
namespace bf16 {

constexpr int kTaps = 9;

// Bytes from the start of a record: the bias, float32 [outputs]; fragments [blocks][outputs / 16][steps], those of a
// shortcut [blocks][outputs / 16]. A block is as many inputs as a step takes: a tap, or a row of the image.
struct Record {
  int fragments, blocks, steps;
  int shortcut, shortcut_blocks;
  int bytes;
};

template <int WIDTH>
SMOOTHFAST_INLINE constexpr Record record_of(Part part, int stage, bool changes) {
  const bool image = part == Part::image, first = part == Part::first;
  const int outputs = WIDTH << stage, fragments = outputs / kOutputs * kFragment, before = changes ? stage - 1 : stage;
  const int inputs = WIDTH << (first ? before : stage);
  Record r = {4 * outputs, image ? 1 : inputs / kInputs<2>, image ? 3 : kTaps, 0, 0, 0};
  if (part == Part::second && changes) r.shortcut_blocks = (WIDTH << before) / kInputs<2>;
  r.shortcut = r.fragments + r.blocks * r.steps * fragments;
  r.bytes = r.shortcut + r.shortcut_blocks * fragments;
  return r;
}

// Where the bias of the last layer is, and its end, in bytes: float32 [classes][4 WIDTH], [classes].
struct Last {
  int64_t bias, bytes;
};

template <int WIDTH>
SMOOTHFAST_INLINE constexpr Last last_of(int64_t classes) {
  const int64_t bias = classes * 4 * (WIDTH << 2);
  return {bias, bias + 4 * classes};
}

// A network in so many bytes, of which each record is on a line of 16. Parameters are those of the plan.
int64_t packed_bytes(const Shape& shape);
void pack(const Shape& shape, const std::vector<Parameters>& parameters, const float* linear, const float* linear_bias,
          char* packed);

}  // namespace bf16
}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
