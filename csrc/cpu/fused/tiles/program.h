// What is computed where, of a CIFAR ResNet: geometry, without arithmetic.
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

#include <array>
#include <cstdint>
#include <vector>

namespace smoothfast {
namespace fused_network {

// The image: four channels, of which the last is 0, and room for a tile beyond the last pixel.
constexpr int64_t kImagePixel = 8, kImageRow = 40 * kImagePixel, kImageBytes = 34 * kImageRow;

// A network: 3x3 to width[0], then three stages of basic blocks, the last two of which begin with a stride of 2; mean
// over pixels, linear. Images are 3x32x32.
struct Shape {
  std::array<int64_t, 3> widths;
  int64_t blocks;  // of a stage
  int64_t classes;
};

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
  int weight;       // which of the weights [outputs, inputs, size, size]
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

struct Plan {
  Shape shape;
  int samples;  // of a micro-batch
  std::vector<Convolution> forward, backward;
  int64_t buffers[kBuffers + 1];    // where they begin; then the masks
  int64_t arena;                    // bytes
  int64_t linear, linear_bias;      // in the packed network: float32 [classes, width], [classes]
  int64_t packed, packed_backward;  // bytes of the network without and with what gradients need
  int64_t last_pixel, last_row;     // of the last map

  Plan(const Shape& shape, int samples);
};

// The plan of a shape, made once, for two samples; for eight where the weights do not stay in L2 beside them.
const Plan& planned(const Shape& shape);

// How many products of tiles a convolution takes for so many samples.
int64_t products(const Convolution& convolution, int64_t samples);

// The number of weights [3x3 and, in blocks that change the shape, 1x1], in the order of the network; a 1x1 comes
// before the two 3x3 of its block.
int64_t weights_of(const Shape& shape);

// A convolution and its batch norm: weights [outputs, inputs, size, size], by which outputs are multiplied, and what is
// then added. The bias of a 1x1 is part of that of the 3x3 it is added to.
struct Layer {
  const float* weights;
  const double *gain, *bias;
};

void pack(const Plan& plan, const std::vector<Layer>& layers, const float* linear, const float* linear_bias,
          bool backward, char* packed);

}  // namespace fused_network
}  // namespace smoothfast
