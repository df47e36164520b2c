// A CIFAR ResNet in integers as tensor cores take it: layers in the order of computation, each a record, and the last,
// linear one. A record says what sums are scaled by, and then has weights as fragments.
#pragma once

#include <vector>

#include "../integers.h"
#include "map.h"

namespace smoothfast {
namespace fused {
namespace mma {
namespace integers {

constexpr int kDigits = 3;  // of sums of the image, to base 256: a pixel has two, a weight too
constexpr int kTaps = 9;

// Bytes from the start of a record. float32 or int32 [outputs], fragments [blocks of inputs][outputs / 16][steps].
struct Record {
  int scale;
  int bias;       // of the image [9][outputs]
  int factors;    // of the second of a block, by which its shortcut is multiplied; of the image an addend of its sums
  int fragments;  // of the image [kDigits][3 rows of taps]
  int shortcut;   // fragments [outputs / 16]
  int blocks, steps;
  int bytes;
};

// Of 16 inputs a step takes two taps: the left and the middle of a row, the right ones of two rows, that of the last
// row and none. Else a step is a tap.
SMOOTHFAST_INLINE constexpr Record record_of(Part part, int stage, bool changes) {
  const int outputs = kWidth << stage, line = 4 * outputs, from = part == Part::first && changes ? stage - 1 : stage;
  const bool image = part == Part::image, adds = part == Part::second;
  Record r = {0, line, 0, 0, 0, 1, from == 0 ? 5 : kTaps, 0};
  r.factors = r.bias + (image ? kTaps : 1) * line;
  r.fragments = r.factors + (image || adds ? line : 0);
  if (image) r.steps = kDigits * 3;
  if (from == 2) r.blocks = 2;
  r.shortcut = r.fragments + r.blocks * r.steps * outputs / kOutputs * kFragment;
  r.bytes = r.shortcut + (adds && changes ? outputs / kOutputs * kFragment : 0);
  return r;
}

// The last layer: int16 [classes][64], int32 [classes], a float32. In bytes from its start.
struct Last {
  int64_t bias, unit, bytes;
};

SMOOTHFAST_INLINE constexpr Last last_of(int64_t classes) {
  const int64_t bias = classes * 2 * (kWidth << 2), unit = bias + 4 * classes;
  return {bias, unit, unit + 4};
}

// A network in so many bytes, of which each record is on a line of 16.
int64_t packed_bytes(const Shape& shape);
void pack(const Shape& shape, const std::vector<integer::Numbers>& layers, const int16_t* linear,
          const int32_t* linear_bias, float unit, char* packed);

}  // namespace integers
}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
