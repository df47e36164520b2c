#include "pack.h"

#include <cstring>

#include "../../../rules/arithmetic.h"

namespace smoothfast {
namespace fused {
namespace tiles {
namespace {

struct Column {
  int output, row, part;
};

Column column_of(const Convolution& c, int pair, int tile, int n) {
  switch (c.columns) {
    case Columns::parities:
      return {n, 0, tile};
    case Columns::channels:
      return {32 * pair + 16 * tile + n, 0, 0};
    default:
      return c.channels_per_pixel == 16 ? Column{n % 8 / 2, n / 8, n % 2} : Column{n % 4, n / 4, 0};
  }
}

// Where the weight of an input of a step is, for a column; null where there is none.
const float* weight_at(const Convolution& c, const float* weights, const Step& step, int k, const Column& column) {
  const int input = step.channel + k % c.channels_per_pixel;
  const int row = c.rows.tap(step.row, column.row);
  const int pixel = c.pixels.tap(step.pixel + k / c.channels_per_pixel, column.part);
  const bool there = row >= 0 && row < c.size && pixel >= 0 && pixel < c.size;
  if (!there || input >= c.inputs || column.output >= c.outputs) return nullptr;
  const int64_t place = c.transposed ? static_cast<int64_t>(input) * c.outputs + column.output
                                     : static_cast<int64_t>(column.output) * c.inputs + input;
  return weights + (place * c.size + row) * c.size + pixel;
}

// A row of a tile of weights, of which every second element belongs to one input.
void pack_row(const Convolution& c, const float* weights, const Step& step, int k, int pair, int tile, uint16_t* to) {
  if (c.columns == Columns::image) {
    for (int n = 0; n < 16; ++n) {
      const float* from = weight_at(c, weights, step, k, column_of(c, pair, tile, n));
      to[2 * n] = from ? bfloat16_bits(*from) : 0;
    }
    return;
  }
  // Columns are consecutive outputs.
  const int64_t next = int64_t{c.size} * c.size * (c.transposed ? 1 : c.inputs);
  const float* from = weight_at(c, weights, step, k, column_of(c, pair, tile, 0));
  for (int n = 0; n < 16; ++n) to[2 * n] = from ? bfloat16_bits(from[n * next]) : 0;
}

void pack_tiles(const Convolution& c, const float* weights, char* packed) {
  auto* to = reinterpret_cast<uint16_t*>(packed + c.tiles);
  const int tiles = c.columns == Columns::image ? 1 : 2;
  for (int pair = 0; pair < c.pairs_of_tiles; ++pair)
    for (const Step& step : c.steps)
      for (int tile = 0; tile < tiles; ++tile, to += kTileBytes / sizeof(uint16_t))
        for (int k = 0; k < 32; ++k) pack_row(c, weights, step, k, pair, tile, to + k / 2 * 32 + k % 2);
}

}  // namespace

void pack(const Program& program, const std::vector<Parameters>& parameters, const float* linear,
          const float* linear_bias, bool backward, char* packed) {
  const Plan plan = plan_of(program.shape);
  std::vector<std::vector<float>> weights(parameters.size());
  for (const Convolution& c : program.forward) {
    const Parameters& layer = parameters[c.weight];
    weights[c.weight] = folded_weights(plan[c.weight], layer);
    pack_tiles(c, weights[c.weight].data(), packed);
    if (c.bias < 0) continue;
    auto* bias = reinterpret_cast<float*>(packed + c.bias);
    for (int n = 0; n < 32 * c.pairs_of_tiles; ++n) bias[n] = static_cast<float>(layer.bias[n % c.outputs]);
  }
  const Shape& shape = program.shape;
  std::memcpy(packed + program.linear, linear, shape.classes * shape.widths[2] * sizeof(float));
  std::memcpy(packed + program.linear_bias, linear_bias, shape.classes * sizeof(float));
  if (!backward) return;
  for (const Convolution& c : program.backward) pack_tiles(c, weights[c.weight].data(), packed);
}

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
