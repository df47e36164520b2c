// A plan in integers: what is packed where, what memory a thread takes, and what is computed in which order.
//
// A lane of a vector is a sample. A map is [rows][1 + pixels + 1][channels / 4][lanes][4 channels] in uint8, where the
// pixels on either side of a row are zeros, for tiles, which read them; all else skips taps that are outside. A sum of
// 32 bits is a lane too, and four outputs become the four bytes of a lane.
//
// A weight is packed as a group: four inputs of an output, which are spread over the lanes. Those of maps are packed
// once more as tiles, [outputs / 16][3 rows of taps][steps][16 outputs][64 bytes]: the three pixels that a row of taps
// takes are contiguous, so a step is any part of their channels.
#pragma once

#include <cstdint>
#include <vector>

#include "../../../fused/plan.h"

namespace smoothfast {
namespace fused {
namespace integer {

constexpr int kGroup = 4;                          // inputs, or outputs, together; of the image two
constexpr int kTileOutputs = 16, kTileBytes = 64;  // rows of a tile of weights, and their length in memory

struct Map {
  int64_t at, pixel, row;  // bytes: the first pixel, and from one to the next
};

// What is added to the sums of a map: a 1x1 of what goes into the block, shifted. Where a block has no shortcut, four
// outputs take the four inputs of the same numbers.
struct Beside {
  int layer;  // of the plan, the shortcut; -1: multipliers of the layer itself
  Map map;
  int stride;
  int64_t inputs;           // that an output takes
  int64_t next;             // bytes, from the inputs of four outputs to those of the next four
  int64_t weights, shifts;  // in the packed network: int8 in groups, int32 [outputs]
};

struct Convolution {
  int layer;  // of the plan
  Part part;
  int size, stride;  // of the map it makes; stride
  int64_t inputs, outputs;
  Map in, out;
  Beside beside;        // of Part::second
  int64_t weights;      // bytes in the packed network: groups of int8, of int16 for the image
  int64_t tiles;        // -1 for the image
  int64_t scale, bias;  // float32 [outputs]; bias of the image [3 rows][3 pixels][outputs], by what is outside

  int64_t groups() const { return part == Part::image ? 2 : inputs / kGroup; }
  int64_t step_groups() const;  // rows of a tile of inputs
  int64_t steps() const { return 3 * groups() / step_groups(); }
};

struct Program {
  Shape shape;
  std::vector<Convolution> convolutions;
  Map image, last;                    // image: two groups of a pixel, of which a number of the second is 0
  int64_t arena;                      // bytes
  int64_t linear, linear_bias, unit;  // int16 [classes][width / 4][channels 0, 2, 1, 3], int32 [classes], a float32
  int64_t packed;                     // bytes, the same for any number of lanes

  Program(const Shape& shape, int lanes);
};

// The program of a shape, made once.
const Program& program_of(const Shape& shape, int lanes);

}  // namespace integer
}  // namespace fused
}  // namespace smoothfast
