#include "bf16.h"

#include <cstring>

namespace smoothfast {
namespace fused {
namespace mma {
namespace bf16 {

namespace {

// Weights [outputs, inputs, size, size] of a layer, as rows of taps.
struct Weights {
  std::vector<float> numbers;
  int64_t inputs;
  int size;

  uint16_t of(int64_t output, int64_t input, int row, int column) const {
    return bfloat16_bits(numbers[((output * inputs + input) * size + row) * size + column]);
  }
};

// Fragments of a layer whose steps take its taps, one for each.
void pack_taps(const Weights& weights, int64_t outputs, int blocks, char* packed) {
  auto* to = reinterpret_cast<uint16_t*>(packed);
  for (int64_t first = 0; first < blocks * kInputs<2>; first += kInputs<2>)
    for (int64_t group = 0; group < outputs; group += kOutputs)
      for (int row = 0; row < weights.size; ++row)
        for (int column = 0; column < weights.size; ++column)
          to = pack_fragment([&](int o, int i) { return weights.of(group + o, first + i, row, column); }, to);
}

// A step takes four pixels of a row of the image, the last of which has no weight.
void pack_image(const Weights& weights, int64_t outputs, char* packed) {
  auto* to = reinterpret_cast<uint16_t*>(packed);
  for (int64_t group = 0; group < outputs; group += kOutputs)
    for (int row = 0; row < 3; ++row)
      to = pack_fragment(
          [&](int o, int i) {
            const int column = i / (kImagePixel / 2), channel = i % (kImagePixel / 2);
            return column < 3 && channel < 3 ? weights.of(group + o, channel, row, column) : uint16_t{0};
          },
          to);
}

Weights weights_of(const Layer& layer, const Parameters& parameters) {
  return {folded_weights(layer, parameters), layer.inputs, layer.size};
}

void pack_layer(const Plan& plan, size_t i, const std::vector<Parameters>& parameters, const Record& record,
                char* packed) {
  const Layer& layer = plan[i];
  auto* bias = reinterpret_cast<float*>(packed);
  for (int64_t o = 0; o < layer.outputs; ++o) bias[o] = static_cast<float>(parameters[i].bias[o]);
  const Weights weights = weights_of(layer, parameters[i]);
  if (layer.part == Part::image) return pack_image(weights, layer.outputs, packed + record.fragments);
  pack_taps(weights, layer.outputs, record.blocks, packed + record.fragments);
  if (record.shortcut_blocks > 0)
    pack_taps(weights_of(plan[i - 2], parameters[i - 2]), layer.outputs, record.shortcut_blocks,
              packed + record.shortcut);
}

template <int WIDTH>
int64_t bytes_of(const Shape& shape) {
  const int64_t end = each_record<record_of<WIDTH>>(plan_of(shape), [](size_t, const Record&, int64_t) {});
  return end + last_of<WIDTH>(shape.classes).bytes;
}

template <int WIDTH>
void pack_of(const Shape& shape, const std::vector<Parameters>& parameters, const float* linear,
             const float* linear_bias, char* packed) {
  const Plan plan = plan_of(shape);
  char* const end = packed + each_record<record_of<WIDTH>>(plan, [&](size_t i, const Record& record, int64_t at) {
                      pack_layer(plan, i, parameters, record, packed + at);
                    });
  const Last last = last_of<WIDTH>(shape.classes);
  std::memcpy(end, linear, last.bias);
  std::memcpy(end + last.bias, linear_bias, last.bytes - last.bias);
}

}  // namespace

int64_t packed_bytes(const Shape& shape) {
  return is_wide(shape) ? bytes_of<2 * kWidth>(shape) : bytes_of<kWidth>(shape);
}

void pack(const Shape& shape, const std::vector<Parameters>& parameters, const float* linear, const float* linear_bias,
          char* packed) {
  const auto packs = is_wide(shape) ? pack_of<2 * kWidth> : pack_of<kWidth>;
  packs(shape, parameters, linear, linear_bias, packed);
}

}  // namespace bf16
}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
