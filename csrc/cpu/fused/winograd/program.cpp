#include "program.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

namespace smoothfast {
namespace fused {
namespace winograd {

namespace {

constexpr int64_t kLine = 64, kFloat = sizeof(float);

int64_t lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// Elements of the weights of a layer, of which bf16 takes inputs in pairs.
int64_t elements(const Layer& layer) {
  if (layer.part == Part::image) return layer.outputs * 3 * 10;
  const bool transformed = layer.size == 3 && layer.stride == 1;
  return layer.outputs * layer.inputs * (transformed ? kFrequencies : layer.size * layer.size);
}

}  // namespace

Program::Program(const Shape& of, Numbers numbers) : shape(of), plan(plan_of(of)), arena(0), packed_backward(0) {
  const auto take = [](int64_t& total, int64_t bytes) {
    const int64_t at = total;
    total += lines(bytes);
    return at;
  };
  for (const Layer& layer : plan) {
    const bool bf16 = numbers == Numbers::bf16 || (numbers == Numbers::mixed && layer.stage < 2);
    const bool exact = layer.part == Part::shortcut;  // in bf16, option A would round what it hands on
    Place place = {bf16 && !exact, -1, -1, -1};
    place.weights = take(packed_backward, elements(layer) * (place.bf16 ? 2 : kFloat));
    if (layer.part != Part::shortcut) place.bias = take(packed_backward, layer.outputs * kFloat);
    places.push_back(place);
  }
  linear = take(packed_backward, shape.classes * shape.widths[2] * kFloat);
  linear_bias = take(packed_backward, shape.classes * kFloat);
  packed = packed_backward;
  for (size_t i = 0; i < plan.size(); ++i) {
    const bool image = plan[i].part == Part::image;  // whose gradient is always in float32
    const int64_t count = image ? plan[i].outputs * 27 : elements(plan[i]);
    places[i].backward = take(packed_backward, count * (places[i].bf16 && !image ? 2 : kFloat));
  }

  int64_t widest = 0, transforms = 0;
  for (int stage = 0; stage < 3; ++stage) {
    x[stage] = take(arena, kSamples[stage] * map(stage) * kFloat);
    h[stage] = take(arena, kSamples[stage] * map(stage) * kFloat);
    widest = std::max(widest, map(stage));
    transforms = std::max(transforms, kFrequencies * (kTiles[stage] * shape.widths[stage] + 32) * kFloat);
  }
  image = take(arena, kImageRows * kImageRow * kFloat);
  narrow = take(arena, widest * kFloat);
  transformed = take(arena, transforms);
  sums = take(arena, transforms);
  planes = take(arena, shape.widths[0] * kImageRows * 48 * kFloat);
  for (const Layer& layer : plan) masks.push_back(take(arena, kSamples[2] * mask(layer.stage)));
}

const Program& program_of(const Shape& shape, Numbers numbers) {
  using Key = std::array<int64_t, 6>;
  static std::mutex mutex;
  static std::map<Key, std::unique_ptr<const Program>> programs;
  const Key key = {shape.widths[0], shape.widths[1], shape.widths[2],
                   shape.blocks,    shape.classes,   static_cast<int64_t>(numbers)};
  const std::lock_guard<std::mutex> alone(mutex);
  std::unique_ptr<const Program>& program = programs[key];
  if (!program) program = std::make_unique<const Program>(shape, numbers);
  return *program;
}

}  // namespace winograd
}  // namespace fused
}  // namespace smoothfast
