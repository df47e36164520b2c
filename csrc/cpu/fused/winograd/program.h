// A plan for Winograd's algorithm: what is packed where, and what memory a thread takes.
//
// A 3x3 convolution with a stride of 1 runs by F(4x4, 3x3): tiles of 6x6 inputs and the weights are transformed, 36
// products of matrices [tiles, inputs] by [inputs, outputs] take the place of 144 of pixels, and sums are transformed
// back to tiles of 4x4 outputs. Lanes are outputs; inputs are broadcast from memory. All else is direct.
//
// Maps are float32 NHWC with a ring of zeros. The later a stage, the smaller its maps, and the more samples go through
// it at a time: so there are always enough tiles for weights to be read once.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../../../fused/plan.h"

namespace smoothfast {
namespace fused {
namespace winograd {

constexpr int kFrequencies = 36;
constexpr int kSamples[3] = {1, 4, 16};  // that go through a stage together
constexpr int kTiles[3] = {8, 16, 32};   // transformed at a time: 20, 76 and 290 KiB in float32

// The image: rows of pixels of 3 channels, with a ring of zeros and room for a load beyond the last.
constexpr int64_t kImageRow = 112, kImageRows = 34;

// What products are of: all of float32, all of bf16, or of bf16 but in the last stage, where errors weigh most.
enum class Numbers { fp32, bf16, mixed };

// Outputs whose weights lie side by side.
inline int64_t panel_of(int64_t outputs) { return outputs % 64 == 0 ? 64 : outputs % 32 == 0 ? 32 : 16; }

// Where a layer is in the packed network, in bytes; -1 where it has none.
struct Place {
  bool bf16;
  int64_t weights, bias, backward;
};

struct Program {
  Shape shape;
  Plan plan;
  std::vector<Place> places;   // of the layers of the plan
  std::vector<int64_t> masks;  // of the map that a layer makes: bytes in the arena
  int64_t x[3], h[3];          // maps of a stage, and those within its blocks
  int64_t image, narrow, transformed, sums, planes;
  int64_t arena;                // bytes
  int64_t linear, linear_bias;  // float32 [classes, width], [classes]
  int64_t packed, packed_backward;

  Program(const Shape& shape, Numbers numbers);

  // The layer of the plan that a stage begins with: the image's, or a shortcut.
  int first_of_stage(int stage) const { return stage == 0 ? 0 : 1 + 2 * stage * (int)shape.blocks + stage - 1; }
  int64_t size(int stage) const { return 32 >> stage; }                             // pixels in a row
  int64_t row(int stage) const { return (size(stage) + 2) * shape.widths[stage]; }  // floats, ring included
  int64_t map(int stage) const { return (size(stage) + 2) * row(stage); }
  int64_t mask(int stage) const { return size(stage) * size(stage) * shape.widths[stage] / 4; }  // bytes of a sample
};

// The program of a shape, made once.
const Program& program_of(const Shape& shape, Numbers numbers);

}  // namespace winograd
}  // namespace fused
}  // namespace smoothfast
