#include "integers.h"

#include <cstring>

namespace smoothfast {
namespace fused {
namespace mma {
namespace integers {

namespace {

struct Tap {
  int row, column;
};

constexpr Tap kNone = {-1, -1};
constexpr Tap kPairs[5][2] = {{{0, 0}, {0, 1}}, {{1, 0}, {1, 1}}, {{2, 0}, {2, 1}}, {{0, 2}, {1, 2}}, {{2, 2}, kNone}};

// Weights int8 [outputs, inputs, size, size].
struct Weights {
  const int8_t* numbers;
  int64_t inputs;
  int size;

  int8_t of(int64_t output, int64_t input, Tap tap) const {
    return numbers[((output * inputs + input) * size + tap.row) * size + tap.column];
  }
};

// What `step` of a fragment takes for its input i, of those from `first` on.
int8_t weight_of(const Weights& weights, int64_t output, int64_t first, int step, int i) {
  if (weights.inputs > kWidth) return weights.of(output, first + i, {step / 3, step % 3});
  const Tap tap = kPairs[step][i / kWidth];
  return tap.row < 0 ? 0 : weights.of(output, i % kWidth, tap);
}

void pack_taps(const Record& record, const Layer& layer, const int8_t* numbers, char* packed) {
  const Weights weights = {numbers, layer.inputs, 3};
  auto* to = reinterpret_cast<int8_t*>(packed + record.fragments);
  for (int block = 0; block < record.blocks; ++block)
    for (int64_t group = 0; group < layer.outputs; group += kOutputs)
      for (int step = 0; step < record.steps; ++step)
        to =
            pack_fragment([&](int o, int i) { return weight_of(weights, group + o, block * kInputs<1>, step, i); }, to);
}

// A step takes more inputs than the first stage has: the others have no weight.
void pack_shortcut(const Record& record, const Layer& layer, const int8_t* numbers, char* packed) {
  const Weights weights = {numbers, layer.inputs, 1};
  auto* to = reinterpret_cast<int8_t*>(packed + record.shortcut);
  for (int64_t group = 0; group < layer.outputs; group += kOutputs)
    to = pack_fragment([&](int o, int i) { return i < layer.inputs ? weights.of(group + o, i, {0, 0}) : int8_t{0}; },
                       to);
}

// A weight as digits to base 256, the lower one -128 .. 127.
int8_t digit_of(int weight, int digit) {
  if (digit < 0 || digit > 1) return 0;
  const int high = (weight + 128) >> 8;
  return static_cast<int8_t>(digit == 1 ? high : weight - 256 * high);
}

// A pixel + 2^15 as two digits from 0 to 255: what this adds to the sums is taken off again. From the highest digit of
// the sums down; after the first one they are multiplied by 256 twice.
void pack_image(const Record& record, const Layer& layer, const int16_t* numbers, char* packed) {
  auto* to = reinterpret_cast<int8_t*>(packed + record.fragments);
  for (int digit = kDigits - 1; digit >= 0; --digit)
    for (int row = 0; row < 3; ++row)
      to = pack_fragment(
          [&](int o, int i) {
            const int column = i / kImagePixel, channel = i % kImagePixel / 2;
            const bool there = column < 3 && channel < 3;
            return digit_of(there ? numbers[((o * 3 + channel) * 3 + row) * 3 + column] : 0, digit - i % 2);
          },
          to);
  auto* addends = reinterpret_cast<int32_t*>(packed + record.factors);
  for (int64_t o = 0; o < layer.outputs; ++o) {
    addends[o] = 0;
    for (int64_t i = 27 * o; i < 27 * (o + 1); ++i) addends[o] -= numbers[i] * (1 << 15 >> 8);
  }
}

// By what the shortcut is multiplied.
void pack_factors(const Record& record, const Layer& layer, const integer::Numbers& numbers, bool changes,
                  char* packed) {
  auto* factors = reinterpret_cast<int32_t*>(packed + record.factors);
  for (int64_t o = 0; o < layer.outputs; ++o) factors[o] = (changes ? 1 : numbers.multipliers[o]) << numbers.shifts[o];
}

void pack_layer(const Plan& plan, size_t i, const std::vector<integer::Numbers>& layers, const Record& record,
                char* packed) {
  const Layer& layer = plan[i];
  const integer::Numbers& numbers = layers[i];
  const bool image = layer.part == Part::image;
  std::memcpy(packed + record.scale, numbers.scale, layer.outputs * sizeof(float));
  std::memcpy(packed + record.bias, numbers.bias, (image ? kTaps : 1) * layer.outputs * sizeof(float));
  if (image) return pack_image(record, layer, static_cast<const int16_t*>(numbers.weights), packed);
  pack_taps(record, layer, static_cast<const int8_t*>(numbers.weights), packed);
  if (layer.part != Part::second) return;
  const bool changes = plan[i - 2].part == Part::shortcut;
  pack_factors(record, layer, numbers, changes, packed);
  if (changes) pack_shortcut(record, plan[i - 2], static_cast<const int8_t*>(layers[i - 2].weights), packed);
}

}  // namespace

int64_t packed_bytes(const Shape& shape) {
  return each_record<record_of>(plan_of(shape), [](size_t, const Record&, int64_t) {}) + last_of(shape.classes).bytes;
}

void pack(const Shape& shape, const std::vector<integer::Numbers>& layers, const int16_t* linear,
          const int32_t* linear_bias, float unit, char* packed) {
  const Plan plan = plan_of(shape);
  char* const end = packed + each_record<record_of>(plan, [&](size_t i, const Record& record, int64_t at) {
                      pack_layer(plan, i, layers, record, packed + at);
                    });
  const Last last = last_of(shape.classes);
  std::memcpy(end, linear, last.bias);
  std::memcpy(end + last.bias, linear_bias, last.unit - last.bias);
  std::memcpy(end + last.unit, &unit, sizeof unit);
}

}  // namespace integers
}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
