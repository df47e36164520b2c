#include "program.h"

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace smoothfast {
namespace fused_network {

namespace {

constexpr int64_t kLine = 64, kTile = 1024, kFloat = sizeof(float);
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

class Planner {
 public:
  explicit Planner(Plan& plan) : plan_(plan) {
    for (int stage = 0; stage < 3; ++stage) maps_[stage] = Map::of_stage(stage, plan.shape.widths[stage]);
    place_buffers();
    forward();
    plan_.linear = packed(plan.shape.classes * maps_[2].channels * kFloat);
    plan_.linear_bias = packed(plan.shape.classes * kFloat);
    plan_.packed = plan_.packed_backward;
    backward();
    plan_.last_pixel = maps_[2].pixel;
    plan_.last_row = maps_[2].row;
  }

 private:
  // ---- memory --------------------------------------------------------------------------------------------------

  void place_buffers() {
    int64_t sizes[kBuffers] = {kImageBytes * plan_.samples};
    for (const Map& map : maps_) sizes[map.x] = sizes[map.h] = map.image * plan_.samples / map.together;
    for (int buffer = 0; buffer < kBuffers; ++buffer) {
      plan_.buffers[buffer] = plan_.arena;
      // Between them is room for what tiles read beyond the last pixel, times weights of 0.
      plan_.arena += lines(sizes[buffer]) + 4 * kLine;
    }
    plan_.buffers[kBuffers] = plan_.arena;
  }

  int64_t mask_of(const Map& map) {  // a bit for each element of the buffer
    const int64_t at = plan_.arena;
    plan_.arena += lines(map.image * plan_.samples / map.together / 16);
    return at;
  }

  int64_t packed(int64_t bytes) {
    const int64_t at = plan_.packed_backward;
    plan_.packed_backward += lines(bytes);
    return at;
  }

  void add(std::vector<Convolution>& list, Convolution convolution, bool bias) {
    const int64_t pairs = convolution.pairs_of_tiles, tiles = 2 * static_cast<int64_t>(convolution.steps.size());
    convolution.tiles = packed(pairs * (convolution.columns == Columns::image ? tiles / 2 : tiles) * kTile);
    convolution.bias = bias ? packed(pairs * 32 * kFloat) : -1;
    list.push_back(std::move(convolution));
  }

  // ---- forwards ------------------------------------------------------------------------------------------------

  void forward() {
    const int64_t blocks = plan_.shape.blocks;
    int weight = 0;
    x_masks_.push_back(mask_of(maps_[0]));
    add(plan_.forward, from_image(), true);
    for (int stage = 0; stage < 3; ++stage)
      for (int64_t block = 0; block < blocks; ++block) {
        const Map& map = maps_[stage];
        const bool changes = stage > 0 && block == 0;
        h_masks_.push_back(mask_of(map));
        x_masks_.push_back(mask_of(map));
        if (changes) {
          add_down(1, ++weight, Finish::linear, -1, stage);
          add_down(3, ++weight, Finish::relu, h_masks_.back(), stage);
        } else {
          add(plan_.forward, same(map, map.x, map.h, ++weight, false, Finish::relu, false, h_masks_.back()), true);
        }
        add(plan_.forward, same(map, map.h, map.x, ++weight, false, Finish::relu, true, x_masks_.back()), true);
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
    c.mask = x_masks_.back();
    return c;
  }

  // 3x3 within a map, or its gradient.
  Convolution same(const Map& map, Buffer from, Buffer to, int weight, bool transposed, Finish finish, bool adds,
                   int64_t mask) const {
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
  void add_down(int size, int weight, Finish finish, int64_t mask, int stage) {
    const Map &from = maps_[stage - 1], &to = maps_[stage];
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
      c.finish = finish;
      c.mask = mask;
      if (sample == 0) {
        add(plan_.forward, c, size == 3);
      } else {
        c.tiles = plan_.forward.back().tiles;
        c.bias = plan_.forward.back().bias;
        plan_.forward.push_back(c);
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
    const int64_t blocks = plan_.shape.blocks;
    int weight = static_cast<int>(weights_of(plan_.shape));
    for (int stage = 2; stage >= 0; --stage)
      for (int64_t block = blocks - 1; block >= 0; --block) {
        const Map& map = maps_[stage];
        const int64_t of_h = h_masks_[stage * blocks + block], of_x = x_masks_[stage * blocks + block];
        add(plan_.backward, same(map, map.x, map.h, --weight, true, Finish::masked, false, of_h), false);
        if (stage > 0 && block == 0) {
          const int spatial = --weight, shortcut = --weight;
          add_up(1, shortcut, map.x, Finish::linear, -1, stage);
          add_up(3, spatial, map.h, Finish::masked, of_x, stage);
        } else {
          add(plan_.backward, same(map, map.h, map.x, --weight, true, Finish::masked, true, of_x), false);
        }
      }
    add(plan_.backward, to_image(), false);
  }

  // The gradient of a stride of 2: rows of one parity after the other, and where pixels do not come in pairs, pixels
  // too. That of a 1x1 is 0 but in even rows and pixels, where that of the 3x3 is added to it.
  void add_up(int size, int weight, Buffer buffer, Finish finish, int64_t mask, int stage) {
    const Map &from = maps_[stage], &to = maps_[stage - 1];
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
        add(plan_.backward, c, false);
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

  Plan& plan_;
  Map maps_[3];
  std::vector<int64_t> x_masks_, h_masks_;  // of what goes into a block, and of what is in its middle
};

// ---- weights -----------------------------------------------------------------------------------------------------

uint16_t bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN stays one
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

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
      to[2 * n] = from ? bfloat16(*from) : 0;
    }
    return;
  }
  // Columns are consecutive outputs.
  const int64_t next = int64_t{c.size} * c.size * (c.transposed ? 1 : c.inputs);
  const float* from = weight_at(c, weights, step, k, column_of(c, pair, tile, 0));
  for (int n = 0; n < 16; ++n) to[2 * n] = from ? bfloat16(from[n * next]) : 0;
}

void pack_tiles(const Convolution& c, const float* weights, char* packed) {
  auto* to = reinterpret_cast<uint16_t*>(packed + c.tiles);
  const int tiles = c.columns == Columns::image ? 1 : 2;
  for (int pair = 0; pair < c.pairs_of_tiles; ++pair)
    for (const Step& step : c.steps)
      for (int tile = 0; tile < tiles; ++tile, to += kTile / sizeof(uint16_t))
        for (int k = 0; k < 32; ++k) pack_row(c, weights, step, k, pair, tile, to + k / 2 * 32 + k % 2);
}

// Batch norms folded into weights.
std::vector<float> folded(const Convolution& c, const Layer& layer) {
  const int64_t of_an_output = int64_t{c.inputs} * c.size * c.size;
  std::vector<float> weights(c.outputs * of_an_output);
  for (int64_t output = 0; output < c.outputs; ++output)
    for (int64_t i = output * of_an_output; i < (output + 1) * of_an_output; ++i)
      weights[i] = static_cast<float>(layer.weights[i] * layer.gain[output]);
  return weights;
}

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

int64_t weights_of(const Shape& shape) { return 1 + 3 * 2 * shape.blocks + 2; }

Plan::Plan(const Shape& of, int many) : shape(of), samples(many), arena(0), packed_backward(0) { Planner{*this}; }

const Plan& planned(const Shape& shape) {
  constexpr int64_t kInL2 = 1 << 20;
  using Key = std::array<int64_t, 5>;
  static std::mutex mutex;
  static std::map<Key, std::unique_ptr<const Plan>> plans;
  const Key key = {shape.widths[0], shape.widths[1], shape.widths[2], shape.blocks, shape.classes};
  const std::lock_guard<std::mutex> alone(mutex);
  std::unique_ptr<const Plan>& plan = plans[key];
  if (!plan) plan = std::make_unique<const Plan>(shape, 2);
  if (plan->packed > kInL2 && plan->samples == 2) plan = std::make_unique<const Plan>(shape, 8);
  return *plan;
}

void pack(const Plan& plan, const std::vector<Layer>& layers, const float* linear, const float* linear_bias,
          bool backward, char* packed) {
  std::vector<std::vector<float>> weights(layers.size());
  for (const Convolution& c : plan.forward) {
    const Layer& layer = layers[c.weight];
    weights[c.weight] = folded(c, layer);
    pack_tiles(c, weights[c.weight].data(), packed);
    if (c.bias < 0) continue;
    auto* bias = reinterpret_cast<float*>(packed + c.bias);
    for (int n = 0; n < 32 * c.pairs_of_tiles; ++n) bias[n] = static_cast<float>(layer.bias[n % c.outputs]);
  }
  std::memcpy(packed + plan.linear, linear, plan.shape.classes * plan.shape.widths[2] * kFloat);
  std::memcpy(packed + plan.linear_bias, linear_bias, plan.shape.classes * kFloat);
  if (!backward) return;
  for (const Convolution& c : plan.backward) pack_tiles(c, weights[c.weight].data(), packed);
}

}  // namespace fused_network
}  // namespace smoothfast
