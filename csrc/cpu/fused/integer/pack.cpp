#include <algorithm>
#include <cstring>

#include "network.h"

namespace smoothfast {
namespace fused {
namespace integer {

namespace {

// [outputs / 4][rows of taps][groups of inputs][taps of a row][4 outputs][inputs of a group], which are 32 bits.
template <class Weight>
void pack_groups(const Layer& layer, const Weight* weights, Weight* to) {
  constexpr int64_t kInputs = kGroup / sizeof(Weight);
  const int size = layer.size;
  for (int64_t o = 0; o < layer.outputs; o += kGroup)
    for (int ky = 0; ky < size; ++ky)
      for (int64_t i = 0; i < layer.inputs; i += kInputs)
        for (int kx = 0; kx < size; ++kx)
          for (int64_t output = o; output < o + kGroup; ++output)
            for (int64_t input = i; input < i + kInputs; ++input)
              *to++ = input < layer.inputs ? weights[((output * layer.inputs + input) * size + ky) * size + kx] : 0;
}

void pack_tiles(const Convolution& c, const int8_t* weights, int8_t* to) {
  const int64_t numbers = c.step_groups() * kGroup;
  for (int64_t o = 0; o < c.outputs; o += kTileOutputs)
    for (int ky = 0; ky < 3; ++ky)
      for (int64_t step = 0; step < c.steps(); ++step)
        for (int64_t output = o; output < o + kTileOutputs; ++output, to += kTileBytes)
          for (int64_t n = 0; n < numbers; ++n) {
            const int64_t kx = (step * numbers + n) / c.inputs, input = (step * numbers + n) % c.inputs;
            to[n] = weights[((output * c.inputs + input) * 3 + ky) * 3 + kx];
          }
}

// The 1x1 of a block without a shortcut: a number on the diagonal of each group.
void pack_diagonal(const int8_t* multipliers, int64_t outputs, int8_t* to) {
  for (int64_t output = 0; output < outputs; ++output) to[output * kGroup + output % kGroup] = multipliers[output];
}

template <class Number>
void copy(const Number* from, int64_t count, char* to) {
  std::memcpy(to, from, count * sizeof(Number));
}

}  // namespace

int64_t packed_bytes(const Shape& shape) { return program_of(shape, 1).packed; }

void pack(const Shape& shape, const std::vector<Numbers>& layers, const int16_t* linear, const int32_t* linear_bias,
          float unit, char* packed) {
  const Program& program = program_of(shape, 1);
  const Plan plan = plan_of(shape);
  const auto bytes = [&](int64_t place) { return reinterpret_cast<int8_t*>(packed + place); };
  const auto pairs = [&](int64_t place) { return reinterpret_cast<int16_t*>(packed + place); };
  std::memset(packed, 0, program.packed);
  for (const Convolution& c : program.convolutions) {
    const Numbers& numbers = layers[c.layer];
    copy(numbers.scale, c.outputs, packed + c.scale);
    copy(numbers.bias, c.part == Part::image ? 9 * c.outputs : c.outputs, packed + c.bias);
    if (c.part == Part::image) {
      pack_groups(plan[c.layer], static_cast<const int16_t*>(numbers.weights), pairs(c.weights));
      continue;
    }
    const auto* weights = static_cast<const int8_t*>(numbers.weights);
    pack_groups(plan[c.layer], weights, bytes(c.weights));
    pack_tiles(c, weights, bytes(c.tiles));
    if (c.part != Part::second) continue;
    copy(numbers.shifts, c.outputs, packed + c.beside.shifts);
    if (c.beside.layer < 0)
      pack_diagonal(numbers.multipliers, c.outputs, bytes(c.beside.weights));
    else
      pack_groups(plan[c.beside.layer], static_cast<const int8_t*>(layers[c.beside.layer].weights),
                  bytes(c.beside.weights));
  }
  const int64_t width = shape.widths[2];
  for (int64_t i = 0; i < shape.classes * width; ++i)  // as the head has sums of pixels: even channels, then odd ones
    pairs(program.linear)[i / kGroup * kGroup + i % 2 * 2 + i % kGroup / 2] = linear[i];
  copy(linear_bias, shape.classes, packed + program.linear_bias);
  copy(&unit, 1, packed + program.unit);
}

}  // namespace integer
}  // namespace fused
}  // namespace smoothfast
