// Random networks in integers, for programs without torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/fused/integer/network.h"

namespace smoothfast {
namespace fused {

class Random {
 public:
  int upto(int most) {  // in -most .. most
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int>(state_ >> 33) % (2 * most + 1) - most;
  }

  template <class Number>
  std::vector<Number> numbers(int64_t count, int most) {
    std::vector<Number> all(count);
    for (Number& number : all) number = static_cast<Number>(upto(most));
    return all;
  }

 private:
  uint64_t state_ = 1;
};

// A network as the kernels read it, in memory of just its size.
inline std::vector<char> packed_integers(const Shape& shape, Random& random) {
  const auto pixels = random.numbers<int16_t>(shape.widths[0] * 27, 2000);
  const auto linear = random.numbers<int16_t>(shape.classes * shape.widths[2], 1000);
  const int64_t widest = *std::max_element(shape.widths.begin(), shape.widths.end());
  const std::vector<float> scales(widest, 1 / 4097.0f), biases(9 * widest, 40.5f);
  const std::vector<int8_t> multipliers(widest, 100);
  const std::vector<int32_t> shifts(widest, 3), linear_bias(shape.classes, 7);
  std::vector<std::vector<int8_t>> weights;
  std::vector<integer::Numbers> layers;
  for (const Layer& layer : plan_of(shape)) {
    weights.push_back(random.numbers<int8_t>(layer.outputs * layer.inputs * layer.size * layer.size, 60));
    const void* of_layer = weights.back().data();
    if (layer.part == Part::image) of_layer = pixels.data();
    layers.push_back({of_layer, scales.data(), biases.data(), multipliers.data(), shifts.data()});
  }
  std::vector<char> packed(integer::packed_bytes(shape));
  integer::pack(shape, layers, linear.data(), linear_bias.data(), 1.0f, packed.data());
  return packed;
}

}  // namespace fused
}  // namespace smoothfast
