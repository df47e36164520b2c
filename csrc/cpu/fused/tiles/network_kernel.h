// A micro-batch through a network, forwards and backwards; included once (network.cpp), compiled for both kinds of
// registers.
#pragma once

#include "ends_kernel.h"

namespace smoothfast {
namespace fused {
namespace tiles {

template <class Tiles, bool kKeepsMasks>
void forwards(Tiles& tiles, const Convolution& c, const Memory& memory) {
  const bool parities = c.columns == Columns::parities;
  if (c.finish == Finish::linear)
    convolve<Tiles, Finish::linear, false, false, false>(tiles, c, memory);
  else if (c.adds)
    parities ? convolve<Tiles, Finish::relu, true, kKeepsMasks, true>(tiles, c, memory)
             : convolve<Tiles, Finish::relu, true, kKeepsMasks, false>(tiles, c, memory);
  else
    parities ? convolve<Tiles, Finish::relu, false, kKeepsMasks, true>(tiles, c, memory)
             : convolve<Tiles, Finish::relu, false, kKeepsMasks, false>(tiles, c, memory);
}

template <class Tiles>
void backwards(Tiles& tiles, const Convolution& c, const Memory& memory, int live, float* gradients) {
  const bool parities = c.columns == Columns::parities;
  if (c.columns == Columns::image)
    c.channels_per_pixel == 16 ? to_images<2>(tiles, c, memory, live, gradients)
                               : to_images<1>(tiles, c, memory, live, gradients);
  else if (c.finish == Finish::linear)
    parities ? convolve<Tiles, Finish::linear, false, false, true>(tiles, c, memory)
             : convolve<Tiles, Finish::linear, false, false, false>(tiles, c, memory);
  else if (c.adds)
    parities ? convolve<Tiles, Finish::masked, true, false, true>(tiles, c, memory)
             : convolve<Tiles, Finish::masked, true, false, false>(tiles, c, memory);
  else
    parities ? convolve<Tiles, Finish::masked, false, false, true>(tiles, c, memory)
             : convolve<Tiles, Finish::masked, false, false, false>(tiles, c, memory);
}

// Replicas of a micro-batch, `live` of them, to logits; and to gradients where labels are given. `done` is told of each
// convolution.
template <class Tiles, class Done>
void run(const Memory& memory, const uint16_t* replicas, int live, float* logits, const int64_t* labels,
         float* gradients, const Done& done) {
  const int64_t classes = memory.program.shape.classes;
  Tiles tiles;
  for (int sample = 0; sample < live; ++sample)
    expand(replicas + sample * kImageElements, memory.arena + memory.program.buffers[kImage] + sample * kImageBytes);
  done(nullptr);
  for (const Convolution& c : memory.program.forward) {
    labels ? forwards<Tiles, true>(tiles, c, memory) : forwards<Tiles, false>(tiles, c, memory);
    done(&c);
  }
  std::vector<float> by(classes);
  for (int sample = 0; sample < live; ++sample) {
    head(memory, sample, logits + sample * classes);
    if (!labels) continue;
    by_logits(logits + sample * classes, classes, labels[sample], by.data());
    head_backwards(memory, sample, by.data());
  }
  done(nullptr);
  if (!labels) return;
  for (const Convolution& c : memory.program.backward) {
    backwards(tiles, c, memory, live, gradients);
    done(&c);
  }
}

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of a product of tiles where nothing else is to do.
template <class Tiles>
double product_seconds(const char* weights) {
  constexpr int kRounds = 1000;
  Tiles tiles;
  tiles.use_rows(kTileRows);
  tiles.template load<4>(weights, kLine);
  tiles.template load<5>(weights, kLine);
  tiles.template load<6>(weights, kLine);
  tiles.template load<7>(weights, kLine);
  const double began = seconds();
  for (int round = 0; round < kRounds; ++round) {
    tiles.template multiply<0, 4, 6>();
    tiles.template multiply<1, 4, 7>();
    tiles.template multiply<2, 5, 6>();
    tiles.template multiply<3, 5, 7>();
  }
  return (seconds() - began) / (4 * kRounds);
}

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
