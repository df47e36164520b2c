#include "program.h"

#include <array>
#include <map>
#include <memory>
#include <mutex>

namespace smoothfast {
namespace fused {
namespace integer {

namespace {

constexpr int64_t kLine = 64;

// Hands out bytes, on lines.
int64_t take(int64_t& total, int64_t bytes) {
  const int64_t at = total;
  total += (bytes + kLine - 1) / kLine * kLine;
  return at;
}

Map take_map(int64_t& total, int64_t size, int64_t groups, int64_t vector) {
  const int64_t pixel = groups * vector, row = (size + 2) * pixel;
  return {take(total, size * row) + pixel, pixel, row};
}

int64_t bytes_of_groups(const Layer& layer) {
  return layer.outputs * layer.size * layer.size * (layer.part == Part::image ? 2 * kGroup : layer.inputs);
}

}  // namespace

// A row of taps takes a multiple of 12 groups.
int64_t Convolution::step_groups() const {
  for (int64_t most = kTileBytes / kGroup; most > 12; --most)
    if (3 * groups() % most == 0) return most;
  return 12;
}

Program::Program(const Shape& of, int lanes) : shape(of), arena(0), packed(0) {
  const int64_t vector = kGroup * lanes;
  image = take_map(arena, 32, 2, vector);
  Map x[3], h[3];
  for (int stage = 0; stage < 3; ++stage)
    for (Map* map : {&x[stage], &h[stage]}) *map = take_map(arena, 32 >> stage, shape.widths[stage] / kGroup, vector);
  const Plan plan = plan_of(shape);
  for (int i = 0; i < (int)plan.size(); ++i) {
    const Layer& layer = plan[i];
    if (layer.part == Part::shortcut) continue;  // part of the second
    const int64_t floats = layer.outputs * sizeof(float);
    const bool of_image = layer.part == Part::image;
    Convolution c = {i, layer.part, 32 >> layer.stage, layer.stride, layer.inputs, layer.outputs, {}, {}, {}, 0, 0,
                     0, 0};
    c.in = of_image ? image : layer.part == Part::second ? h[layer.stage] : x[layer.stage - (layer.stride - 1)];
    c.out = layer.part == Part::first ? h[layer.stage] : x[layer.stage];
    c.weights = take(packed, bytes_of_groups(layer));
    c.tiles = of_image ? -1 : take(packed, layer.outputs * 3 * c.steps() * kTileBytes);
    c.scale = take(packed, floats);
    c.bias = take(packed, of_image ? 9 * floats : floats);
    if (layer.part == Part::second) {
      const bool changes = plan[i - 2].part == Part::shortcut;
      c.beside = changes ? Beside{i - 2, x[layer.stage - 1], 2, plan[i - 2].inputs, 0, 0, 0}
                         : Beside{-1, x[layer.stage], 1, kGroup, vector, 0, 0};
      c.beside.weights = take(packed, layer.outputs * c.beside.inputs);
      c.beside.shifts = take(packed, layer.outputs * sizeof(int32_t));
    }
    convolutions.push_back(c);
  }
  last = x[2];
  linear = take(packed, shape.classes * shape.widths[2] * sizeof(int16_t));
  linear_bias = take(packed, shape.classes * sizeof(int32_t));
  unit = take(packed, sizeof(float));
}

const Program& program_of(const Shape& shape, int lanes) {
  using Key = std::array<int64_t, 6>;
  static std::mutex mutex;
  static std::map<Key, std::unique_ptr<const Program>> programs;
  const Key key = {shape.widths[0], shape.widths[1], shape.widths[2], shape.blocks, shape.classes, lanes};
  const std::lock_guard<std::mutex> alone(mutex);
  std::unique_ptr<const Program>& program = programs[key];
  if (!program) program = std::make_unique<const Program>(shape, lanes);
  return *program;
}

}  // namespace integer
}  // namespace fused
}  // namespace smoothfast
