// Convolutions of the samples that go through a stage together, forwards and backwards.

#include "transforms_kernel.h"

enum class Finish { linear, relu, masked };  // what becomes of sums

// The packed part of a network, and the memory of a thread.
struct Memory {
  const Program& program;
  const char* packed;
  char* arena;

  template <class T = float>
  FORCED T* at(int64_t place) const {
    return (T*)(arena + place);
  }
  template <class T = float>
  FORCED const T* weights(int64_t place) const {
    return (const T*)(packed + place);
  }
  // The bits of a sample's map, of which those of pixel p and channel c are at (p channels + c) / kLanes.
  FORCED Bits* bits(int layer, int64_t sample) const {
    return (Bits*)(arena + program.masks[layer] + sample * program.mask(program.plan[layer].stage));
  }
};

// Sums of outputs: what is there is added, ReLU keeps its mask or takes one, and they are stored.
template <Finish finish, bool kAdds, bool kKeeps>
FORCED void finish_lanes(Lanes sum, float* to, Bits* bits) {
  if (kAdds) sum = sum + load(to);
  if (kKeeps) *bits = positive(sum);
  if (finish == Finish::relu) sum = relu(sum);
  if (finish == Finish::masked) sum = where(*bits, sum);
  store(to, sum);
}

// Calls `by` with the widest panel that divides the outputs.
template <class By>
FORCED void with_panel(int64_t outputs, const By& by) {
  switch (panel_of(outputs)) {
    case 64:
      return by(Block<64>());
    case 32:
      return by(Block<32>());
    default:
      return by(Block<16>());
  }
}

// ---- stride 1
// --------------------------------------------------------------------------------------------------------

// [36][tiles][inputs] times [36][panels][inputs][outputs of a panel] to [36][tiles][outputs]. Of a single panel the
// channels are known when this is compiled.
template <class Number, int kPanel, bool kSingle>
NOT_INLINED void multiply(const typename Number::Stored* inputs, int64_t next_inputs,
                          const typename Number::Stored* weights, float* sums, int64_t next_sums, int tiles,
                          int64_t width) {
  using Of = Block<kPanel>;
  const int64_t channels = kSingle ? kPanel : width;
  for (int frequency = 0; frequency < kFrequencies; ++frequency, inputs += next_inputs, sums += next_sums)
    for (int64_t panel = 0; panel < channels; panel += kPanel, weights += kPanel * channels)
      for (int64_t part = 0; part < kPanel; part += Of::kWidth)
        for (int tile = 0; tile < tiles; tile += Of::kRows) {
          Of block;
          block.fill_all(nullptr);
          block.template add_products<Number>(inputs + tile * channels, channels, weights + part * Number::kTogether,
                                              channels);
          float* to = sums + tile * channels + panel + part;
#pragma GCC unroll 8
          for (int r = 0; r < Of::kRows; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < Of::kVectors; ++n) store(to + r * channels + n * kLanes, block.sums[r][n]);
        }
}

// Tiles of 4x4 outputs of square maps, row by row and sample after sample: 2^`log` in a row.
struct TilesOf {
  int log;

  int across() const { return 1 << log; }
  int sample(int tile) const { return tile >> 2 * log; }
  int y(int tile) const { return (tile >> log & (across() - 1)) * 4; }
  int x(int tile) const { return (tile & (across() - 1)) * 4; }
};

// A 3x3 within the maps of a stage. Bias: of outputs, or none.
template <class Number, Finish finish, bool kAdds, bool kKeeps>
NOT_INLINED void convolve(const Memory& memory, int stage, int64_t from, int64_t to, int samples, int64_t weights,
                          int64_t bias, int layer, int64_t first_sample) {
  using Stored = typename Number::Stored;
  const Program& program = memory.program;
  const int64_t channels = program.shape.widths[stage], row = program.row(stage), map = program.map(stage);
  const TilesOf tiles_of = {3 - stage};
  const int across = tiles_of.across(), all = samples * across * across, most = kTiles[stage];
  const int64_t next_inputs = most * channels + 64 / sizeof(Stored), next_sums = most * channels + 16;
  Stored* const inputs = memory.at<Stored>(program.transformed);
  float* const sums = memory.at(program.sums);
  const float *const in = memory.at(from), *const shift = bias < 0 ? nullptr : memory.weights(bias);
  float* const out = memory.at(to) + row + channels;
  for (int first = 0; first < all; first += most) {
    const int tiles = std::min(most, all - first);
    for (int tile = 0; tile < tiles; tile += across) {
      const float* tile_in = in + tiles_of.sample(first + tile) * map + tiles_of.y(first + tile) * row;
      for (int64_t c = 0; c < channels; c += kLanes)
        to_frequencies<Number>(tile_in + c, row, channels, inputs + tile * channels + c, next_inputs, across);
    }
    with_panel(channels, [&](auto block) ALWAYS {
      constexpr int kPanel = decltype(block)::kPanelWidth;
      const auto product = channels == kPanel ? multiply<Number, kPanel, true> : multiply<Number, kPanel, false>;
      product(inputs, next_inputs, memory.weights<Stored>(weights), sums, next_sums, tiles, channels);
    });
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Lanes added = shift ? load(shift + c) : (Lanes){};
      for (int tile = 0; tile < tiles; ++tile) {
        const int64_t sample = tiles_of.sample(first + tile), y = tiles_of.y(first + tile),
                      x = tiles_of.x(first + tile);
        float* tile_out = out + sample * map + y * row + x * channels + c;
        Bits* bits = memory.bits(layer, first_sample + sample) + ((y * 4 * across + x) * channels + c) / kLanes;
        from_frequencies(sums + tile * channels + c, next_sums, [&](int r, int p, Lanes sum) ALWAYS {
          if (finish == Finish::relu) sum = sum + added;
          finish_lanes<finish, kAdds, kKeeps>(sum, tile_out + r * row + p * channels,
                                              bits + (r * 4 * across + p) * channels / kLanes);
        });
      }
    }
  }
}

// ---- stride 2
// --------------------------------------------------------------------------------------------------------

// The map itself, or a copy in bf16.
template <class Number>
const typename Number::Stored* narrowed(const Memory& memory, const float* map, int64_t elements) {
  if constexpr (Number::kTogether == 1) {
    return map;
  } else {
    auto* copy = memory.at<typename Number::Stored>(memory.program.narrow);
    for (int64_t i = 0; i < elements; i += kLanes) Number::put(copy + i, load(map + i));
    return copy;
  }
}

// A 3x3 or 1x1 with a stride of 2 from a map of the stage before.
template <class Number, Finish finish, bool kKeeps>
NOT_INLINED void convolve_down(const Memory& memory, int layer, const float* map, float* out, Bits* bits) {
  const Program& program = memory.program;
  const Layer& of = program.plan[layer];
  const Place& place = program.places[layer];
  const int64_t row = program.row(of.stage - 1), out_row = program.row(of.stage), size = program.size(of.stage);
  const auto* in = narrowed<Number>(memory, map, program.map(of.stage - 1));
  if (of.size == 1) in += row + of.inputs;  // past the ring
  const float* shift = place.bias < 0 ? nullptr : memory.weights(place.bias);
  out += out_row + of.outputs;
  with_panel(of.outputs, [&](auto chosen) ALWAYS {
    using Of = decltype(chosen);
    constexpr int kPanel = Of::kPanelWidth;
    const auto* weights = memory.weights<typename Number::Stored>(place.weights);
    for (int64_t panel = 0; panel < of.outputs; panel += kPanel, weights += of.size * of.size * of.inputs * kPanel)
      for (int64_t c = panel; c < panel + kPanel; c += Of::kWidth)
        for (int64_t y = 0; y < size; ++y)
          for (int64_t x = 0; x < size; x += Of::kRows) {
            Of block;
            block.fill_all(shift ? shift + c : nullptr);
            for (int tap = 0; tap < of.size * of.size; ++tap)
              block.template add_products<Number>(
                  in + (2 * y + tap / of.size) * row + (2 * x + tap % of.size) * of.inputs, 2 * of.inputs,
                  weights + tap * of.inputs * kPanel + (c - panel) * Number::kTogether, of.inputs);
#pragma GCC unroll 8
            for (int r = 0; r < Of::kRows; ++r)
#pragma GCC unroll 4
              for (int n = 0; n < Of::kVectors; ++n) {
                const int64_t lanes = c + n * kLanes;
                finish_lanes<finish, false, kKeeps>(block.sums[r][n], out + y * out_row + (x + r) * of.outputs + lanes,
                                                    bits + ((y * size + x + r) * of.outputs + lanes) / kLanes);
              }
          }
  });
}

// The gradient of a stride of 2, by the gradients of the sums of the 3x3 and of the shortcut, [map] each; masked.
template <class Number>
NOT_INLINED void convolve_up(const Memory& memory, int layer, const float* of_first, const float* of_shortcut,
                             float* out, const Bits* bits) {
  const Program& program = memory.program;
  const Layer& of = program.plan[layer];
  const int64_t row = program.row(of.stage), out_row = program.row(of.stage - 1), size = program.size(of.stage);
  const auto* in = narrowed<Number>(memory, of_first, program.map(of.stage));
  out += out_row + of.inputs;
  with_panel(of.inputs, [&](auto chosen) ALWAYS {
    using Of = decltype(chosen);
    constexpr int kPanel = Of::kPanelWidth;
    for (int64_t c = 0; c < of.inputs; c += Of::kWidth) {
      const int64_t panel = c / kPanel, within = c % kPanel;
      const auto* weights = memory.weights<typename Number::Stored>(program.places[layer].backward) +
                            9 * panel * of.outputs * kPanel + within * Number::kTogether;
      const float* exact = memory.weights(program.places[layer - 1].backward) + panel * of.outputs * kPanel + within;
      for (int64_t y = 0; y < 2 * size; ++y)
        for (int64_t odd = 0; odd < 2; ++odd)
          for (int64_t x = 0; x < size; x += Of::kRows) {
            Of block;
            block.fill_all(nullptr);
            for (int64_t ky = 1 - y % 2; ky < 3; ky += 2)
              for (int64_t kx = 1 - odd; kx < 3; kx += 2)
                block.template add_products<Number>(
                    in + ((y + 1 - ky) / 2 + 1) * row + (x + (odd + 1 - kx) / 2 + 1) * of.outputs, of.outputs,
                    weights + (ky * 3 + kx) * of.outputs * kPanel, of.outputs);
            if (y % 2 == 0 && !odd)
              block.template add_products<Float32>(of_shortcut + (y / 2 + 1) * row + (x + 1) * of.outputs, of.outputs,
                                                   exact, of.outputs);
#pragma GCC unroll 8
            for (int r = 0; r < Of::kRows; ++r)
#pragma GCC unroll 4
              for (int n = 0; n < Of::kVectors; ++n) {
                const int64_t pixel = 2 * (x + r) + odd, lanes = c + n * kLanes;
                const Bits on = bits[((y * 2 * size + pixel) * of.inputs + lanes) / kLanes];
                store(out + y * out_row + pixel * of.inputs + lanes, where(on, block.sums[r][n]));
              }
          }
    }
  });
}
