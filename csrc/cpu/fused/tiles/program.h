// A plan in terms of tiles: what is computed where, in which order.
//
// Maps are NHWC in bf16 with a halo of one pixel of zeros, in buffers that hold a micro-batch. A convolution multiplies
// tiles: 16 rows of 32 inputs (consecutive in memory, a fixed stride from row to row) by 32 inputs of 16 outputs. What
// a row of a tile is depends on the map, so that all 16 are used:
//
//   32x32, 16 channels   a pair of pixels, aligned; the two tiles of outputs are the even and the odd pixels of a line
//   32x32, others        a pixel; a group is the two halves of a line, elsewhere it is two lines
//   16x16                a pixel
//   8x8                  a pixel of one of two samples, which are interleaved: [y][x][2][channels]
//
// Strides of 2, the gradients of all these, and shortcuts (option A of He et al. is a 1x1 convolution by 0 and 1)
// differ in nothing but which tap a step of the sum takes: see `Axis`.
#pragma once

#include <cstdint>
#include <vector>

#include "../../../fused/plan.h"

namespace smoothfast {
namespace fused {
namespace tiles {

constexpr int kTileRows = 16, kTileBytes = 1024, kLine = 64;  // kLine: bytes of a row

// The image: four channels, of which the last is 0, and room for a tile beyond the last pixel.
constexpr int64_t kImagePixel = 8, kImageRow = 40 * kImagePixel, kImageBytes = 34 * kImageRow;

// Empty, or why there are no kernels for this shape.
const char* refusal(const Shape& shape);

enum Buffer { kImage, kX1, kH1, kX2, kH2, kX3, kH3, kBuffers };

// The tap of a kernel at a place of a tile: `step` pixels on in the input, for outputs that are `part` pixels on.
struct Axis {
  int first, per_step, per_part;

  // Negative or too large where there is none.
  int tap(int step, int part) const { return first + per_step * step + per_part * part; }
};

// 32 inputs of a sum: where they are, from those of the first step on.
struct Step {
  int64_t offset;           // bytes
  int row, pixel, channel;  // of the first of them
};

struct Side {
  Buffer buffer;
  int64_t start;                  // bytes, as all that follows
  int64_t sample, group, second;  // to the next sample (or pair of them), group, and from the first to the second part
  int64_t even, odd;              // from a row of a tile to the next but one, and from an even row to the next
};

enum class Columns { channels, parities, image };  // what the columns of tiles of weights are
enum class Finish { linear, relu, masked };        // what becomes of sums

struct Convolution {
  int weight;       // which layer of the plan has its weights [outputs, inputs, size, size]
  bool transposed;  // the gradient: outputs are inputs
  int outputs, inputs, size;
  Axis rows, pixels;
  int channels_per_pixel;  // among the 32 inputs of a step
  std::vector<Step> steps;
  Columns columns;
  int pairs_of_tiles;  // 32 outputs each
  Side in, out;
  int groups, tile_rows, per_sample;  // per_sample: 1, or 2 where a step of `sample` is two samples
  Finish finish;
  bool adds;            // to what is there
  int64_t mask;         // bits of the signs of this map, where they are kept: bytes in a sample's masks, times samples
  int64_t tiles, bias;  // bytes in the packed network; bias -1: none
};

struct Program {
  Shape shape;
  int samples;  // of a micro-batch
  std::vector<Convolution> forward, backward;
  int64_t buffers[kBuffers + 1];    // where they begin; then the masks
  int64_t arena;                    // bytes
  int64_t linear, linear_bias;      // in the packed network: float32 [classes, width], [classes]
  int64_t packed, packed_backward;  // bytes of the network without and with what gradients need
  int64_t last_pixel, last_row;     // of the last map

  Program(const Shape& shape, int samples);
};

// The program of a shape, made once, for two samples; for eight where the weights do not stay in L2 beside them.
const Program& program_of(const Shape& shape);

// How many products of tiles a convolution takes for so many samples.
int64_t products(const Convolution& convolution, int64_t samples);

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
