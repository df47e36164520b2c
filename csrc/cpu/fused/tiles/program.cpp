#include "program.h"

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace smoothfast {
namespace fused {
namespace tiles {

namespace {

constexpr int64_t kFloat = sizeof(float);
constexpr Axis kAlong = {0, 1, -1}, kBack = {2, -1, 1};  // a 3x3, and its gradient

int64_t lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

struct Map {
  Buffer x, h;
  int64_t size, channels, pixel, row, image;  // bytes; pixel: to the next of the same sample; image: of `together`
  int together;                               // samples
  bool pairs;

  static Map of_stage(int stage, int64_t channels) {
    const int together = stage == 2 ? 2 : 1;
    const int64_t size = 32 >> stage, pixel = 2 * channels * together, row = (size + 2) * pixel;
    const Buffer x = stage == 0 ? kX1 : stage == 1 ? kX2 : kX3, h = static_cast<Buffer>(x + 1);
    return {x, h, size, channels, pixel, row, (size + 2) * row, together, channels == 16};
  }

  int64_t first_pixel() const { return row + pixel; }
  bool halves() const { return size == 32 && !pairs; }
  int64_t groups() const { return halves() ? size : size / 2; }
  int64_t group() const { return halves() ? row : 2 * row; }
  int64_t second() const { return halves() ? 16 * pixel : row; }
  // Rows of tiles of outputs.
  Side outputs(Buffer buffer) const {
    const int64_t odd = pairs ? kLine : pixel / together;
    return {buffer, pairs ? row : first_pixel(), image, group(), second(), 2 * odd, odd};
  }
  // Rows of tiles of inputs for an output at every, or every second pixel and row; from the halo on.
  Side inputs(Buffer buffer, int64_t stride) const {
    const int64_t odd = pairs ? kLine : stride * pixel / together;
    return {buffer, 0, image, stride * group(), stride * second(), 2 * odd, odd};
  }
  int channels_per_pixel() const { return pairs ? 16 : 32; }
};

// Steps over rows, pixels and channels of an input, from the first pixel of the first row on.
std::vector<Step> steps_over(const Map& map, int rows, int pixels) {
  std::vector<Step> steps;
  const int64_t channels = map.channels_per_pixel(), per_step = 32 / channels;
  for (int row = 0; row < rows; ++row)
    for (int64_t pixel = 0; pixel < pixels; pixel += per_step)
      for (int64_t channel = 0; channel < map.channels; channel += 32)
        steps.push_back(
            {row * map.row + pixel * map.pixel + 2 * channel, row, static_cast<int>(pixel), static_cast<int>(channel)});
  return steps;
}

// Makes the convolutions of a program, layer by layer of its plan.
class Builder {
 public:
  explicit Builder(Program& program) : program_(program), plan_(plan_of(program.shape)), masks_(plan_.size(), -1) {
    for (int stage = 0; stage < 3; ++stage) maps_[stage] = Map::of_stage(stage, program.shape.widths[stage]);
    place_buffers();
    forward();
    program_.linear = packed(program.shape.classes * maps_[2].channels * kFloat);
    program_.linear_bias = packed(program.shape.classes * kFloat);
    program_.packed = program_.packed_backward;
    backward();
    program_.last_pixel = maps_[2].pixel;
    program_.last_row = maps_[2].row;
  }

 private:
  // ---- memory --------------------------------------------------------------------------------------------------

  void place_buffers() {
    int64_t sizes[kBuffers] = {kImageBytes * program_.samples};
    for (const Map& map : maps_) sizes[map.x] = sizes[map.h] = map.image * program_.samples / map.together;
    for (int buffer = 0; buffer < kBuffers; ++buffer) {
      program_.buffers[buffer] = program_.arena;
      // Between them is room for what tiles read beyond the last pixel, times weights of 0.
      program_.arena += lines(sizes[buffer]) + 4 * kLine;
    }
    program_.buffers[kBuffers] = program_.arena;
  }

  int64_t mask_of(const Map& map) {  // a bit for each element of the buffer
    const int64_t at = program_.arena;
    program_.arena += lines(map.image * program_.samples / map.together / 16);
    return at;
  }

  int64_t packed(int64_t bytes) {
    const int64_t at = program_.packed_backward;
    program_.packed_backward += lines(bytes);
    return at;
  }

  void add(std::vector<Convolution>& list, Convolution convolution, bool bias) {
    const int64_t pairs = convolution.pairs_of_tiles, tiles = 2 * static_cast<int64_t>(convolution.steps.size());
    convolution.tiles = packed(pairs * (convolution.columns == Columns::image ? tiles / 2 : tiles) * kTileBytes);
    convolution.bias = bias ? packed(pairs * 32 * kFloat) : -1;
    list.push_back(std::move(convolution));
  }

  // ---- forwards ------------------------------------------------------------------------------------------------

  void forward() {
    for (int weight = 0; weight < static_cast<int>(plan_.size()); ++weight) {
      const Layer& layer = plan_[weight];
      const Map& map = maps_[layer.stage];
      if (layer.part != Part::shortcut) masks_[weight] = mask_of(map);
      if (layer.part == Part::image)
        add(program_.forward, from_image(), true);
      else if (layer.stride == 2)
        add_down(weight);
      else if (layer.part == Part::first)
        add(program_.forward, same(weight, map.x, map.h, false, Finish::relu, false, masks_[weight]), true);
      else
        add(program_.forward, same(weight, map.h, map.x, false, Finish::relu, true, masks_[weight]), true);
    }
  }

  Convolution from_image() const {
    const Map& map = maps_[0];
    Convolution c = blank(0, false, map.channels, 3, 3, map);
    const int64_t second = map.pairs ? kImageRow : 16 * kImagePixel, per_row = map.pairs ? 2 : 1;
    c.in = {kImage, 0, kImageBytes, per_row * kImageRow, second, 2 * per_row * kImagePixel, per_row * kImagePixel};
    c.out = map.outputs(map.x);
    c.channels_per_pixel = 4;
    for (int row = 0; row < 3; ++row) c.steps.push_back({row * kImageRow, row, 0, 0});
    c.finish = Finish::relu;
    c.mask = masks_[0];
    return c;
  }

  // 3x3 within a map, or its gradient.
  Convolution same(int weight, Buffer from, Buffer to, bool transposed, Finish finish, bool adds, int64_t mask) const {
    const Map& map = maps_[plan_[weight].stage];
    Convolution c = blank(weight, transposed, map.channels, map.channels, 3, map);
    if (transposed) c.rows = c.pixels = kBack;
    c.in = map.inputs(from, 1);
    c.out = map.outputs(to);
    c.steps = steps_over(map, 3, map.pairs ? 4 : 3);
    c.finish = finish;
    c.adds = adds;
    c.mask = mask;
    return c;
  }

  // 3x3 or 1x1 with a stride of 2 into the map of a stage. Where it holds pairs of samples, first the even samples,
  // then the odd ones, of which a tile has 8 rows.
  void add_down(int weight) {
    const Layer& layer = plan_[weight];
    const int size = layer.size;
    const Map &from = maps_[layer.stage - 1], &to = maps_[layer.stage];
    for (int sample = 0; sample < to.together; ++sample) {
      Convolution c = blank(weight, false, to.channels, from.channels, size, to);
      c.in = from.inputs(from.x, 2);
      c.in.group = 2 * 2 * from.row;
      c.in.second = 2 * from.row;
      c.in.start = sample * from.image;
      c.in.sample = to.together * from.image;
      c.out = to.outputs(size == 1 ? to.x : to.h);
      c.out.start += sample * 2 * to.channels;
      c.channels_per_pixel = from.channels_per_pixel();
      c.steps = steps_over(from, size, size == 1 ? 1 : from.pairs ? 4 : 3);
      if (size == 1) {  // of the first pixel within the halo, which is the second of a pair
        c.in.start += from.row + (from.pairs ? 0 : from.pixel);
        c.rows = {0, 1, 0};
        c.pixels = {from.pairs ? -1 : 0, 1, 0};
      } else {
        c.rows = c.pixels = {0, 1, 0};
      }
      if (to.together == 2) {
        c.tile_rows = 8;
        c.out.even = 2 * to.pixel;
        c.out.odd = to.pixel;
      }
      c.finish = size == 1 ? Finish::linear : Finish::relu;
      c.mask = masks_[weight];
      if (sample == 0) {
        add(program_.forward, c, size == 3);
      } else {
        c.tiles = program_.forward.back().tiles;
        c.bias = program_.forward.back().bias;
        program_.forward.push_back(c);
      }
    }
  }

  Convolution blank(int weight, bool transposed, int64_t outputs, int64_t inputs, int size, const Map& tiled) const {
    Convolution c = {};
    c.weight = weight;
    c.transposed = transposed;
    c.outputs = static_cast<int>(outputs);
    c.inputs = static_cast<int>(inputs);
    c.size = size;
    c.rows = c.pixels = kAlong;
    c.channels_per_pixel = tiled.channels_per_pixel();
    c.columns = outputs == 16 ? Columns::parities : Columns::channels;
    c.pairs_of_tiles = outputs == 16 ? 1 : static_cast<int>(outputs / 32);
    c.groups = static_cast<int>(tiled.groups());
    c.tile_rows = 16;
    c.per_sample = tiled.together;
    c.mask = c.bias = -1;
    return c;
  }

  // ---- backwards -----------------------------------------------------------------------------------------------
  // The gradient by a sum before its ReLU takes the place of what came after it, halo included.

  void backward() {
    for (int weight = static_cast<int>(plan_.size()) - 1; weight > 0; --weight) {
      const Layer& layer = plan_[weight];
      const Map& map = maps_[layer.stage];
      if (layer.part == Part::second) {
        add(program_.backward, same(weight, map.x, map.h, true, Finish::masked, false, masks_[weight - 1]), false);
      } else if (layer.stride == 1) {
        add(program_.backward, same(weight, map.h, map.x, true, Finish::masked, true, masks_[weight - 1]), false);
      } else if (layer.part == Part::first) {  // and the shortcut before it: the gradient of the 3x3 is added
        add_up(weight - 1, map.x, Finish::linear, -1);
        add_up(weight, map.h, Finish::masked, masks_[weight - 2]);
      }
    }
    add(program_.backward, to_image(), false);
  }

  // The gradient of a stride of 2: rows of one parity after the other, and where pixels do not come in pairs, pixels
  // too. That of a 1x1 is 0 but in even rows and pixels, where that of the 3x3 is added to it.
  void add_up(int weight, Buffer buffer, Finish finish, int64_t mask) {
    const Layer& layer = plan_[weight];
    const int size = layer.size;
    const Map &from = maps_[layer.stage], &to = maps_[layer.stage - 1];
    for (int row = 0; row < (size == 1 ? 1 : 2); ++row)
      for (int pixel = 0; pixel < (size == 1 || to.pairs ? 1 : 2); ++pixel) {
        Convolution c = blank(weight, true, to.channels, from.channels, size, from);
        c.in = from.inputs(buffer, 1);
        c.in.start = from.first_pixel();
        c.out = to.outputs(to.x);
        c.out.start += row * to.row + pixel * to.pixel;
        c.out.group = 2 * 2 * to.row;
        c.out.second = 2 * to.row;
        c.out.sample = from.together * to.image;
        if (from.together == 2) {
          c.out.even = 2 * to.pixel;
          c.out.odd = to.image;
        } else if (!to.pairs) {
          c.out.even = 4 * to.pixel;
          c.out.odd = 2 * to.pixel;
        }
        c.rows = size == 1 ? Axis{0, 1, 0} : Axis{1 + row, -2, 0};
        c.pixels = size == 1 ? Axis{0, 1, 1} : Axis{1 + pixel, -2, 1};
        c.steps = steps_over(from, size == 1 ? 1 : 1 + row, size == 1 ? 1 : to.pairs ? 2 : 1 + pixel);
        c.finish = finish;
        c.adds = size == 3 && row == 0 && pixel == 0;
        c.mask = mask;
        add(program_.backward, c, false);
      }
  }

  // A tile has 4 rows or 2 pairs of rows of an image, in 4 channels, of which the last is nothing.
  Convolution to_image() const {
    const Map& map = maps_[0];
    Convolution c = blank(0, true, 3, map.channels, 3, map);
    const int rows = map.pairs ? 2 : 4;
    c.rows = c.pixels = kBack;
    c.columns = Columns::image;
    c.pairs_of_tiles = 1;
    c.groups = 8;
    c.in = map.inputs(map.x, 1);
    c.in.group = 4 * map.row;
    c.in.second = map.pairs ? 2 * map.row : 16 * map.pixel;
    c.steps = steps_over(map, rows + 2, map.pairs ? 4 : 3);
    c.finish = Finish::linear;
    return c;
  }

  Program& program_;
  const Plan plan_;
  Map maps_[3];
  std::vector<int64_t> masks_;  // of the map that a layer makes; -1 for a shortcut
};

}  // namespace

const char* refusal(const Shape& shape) {
  if (shape.blocks < 1 || shape.blocks > 200) return "there must be 1 to 200 blocks in a stage";
  if (shape.classes < 1 || shape.classes > 1 << 16) return "there must be 1 to 65,536 classes";
  for (int stage = 0; stage < 3; ++stage) {
    const int64_t width = shape.widths[stage];
    if (width < 1 || width > 1024 || (width % 32 && !(stage == 0 && width == 16)))
      return "widths must be multiples of 32, the first may be 16";
  }
  return "";
}

int64_t products(const Convolution& c, int64_t samples) {
  const int64_t of_a_step = c.columns == Columns::image ? 2 : 4;
  return of_a_step * c.steps.size() * c.pairs_of_tiles * c.groups * (samples / c.per_sample);
}

Program::Program(const Shape& of, int many) : shape(of), samples(many), arena(0), packed_backward(0) { Builder{*this}; }

const Program& program_of(const Shape& shape) {
  constexpr int64_t kInL2 = 1 << 20;
  using Key = std::array<int64_t, 5>;
  static std::mutex mutex;
  static std::map<Key, std::unique_ptr<const Program>> programs;
  const Key key = {shape.widths[0], shape.widths[1], shape.widths[2], shape.blocks, shape.classes};
  const std::lock_guard<std::mutex> alone(mutex);
  std::unique_ptr<const Program>& program = programs[key];
  if (!program) program = std::make_unique<const Program>(shape, 2);
  if (program->packed > kInL2 && program->samples == 2) program = std::make_unique<const Program>(shape, 8);
  return *program;
}

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
