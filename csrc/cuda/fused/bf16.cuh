// A CIFAR ResNet in bfloat16 on tensor cores: maps and weights of bfloat16, sums of float32.
#pragma once

#include "../../fused/mma/bf16.h"
#include "../cast.h"
#include "tiles.cuh"

namespace smoothfast {
namespace fused {
namespace mma {
namespace bf16 {
namespace {

template <int WIDTH, int STAGE>
using Map = mma::Map<2, STAGE, WIDTH>;

using Sums = mma::Sums<float>;

__device__ __forceinline__ void multiply(float (&d)[4], const Pixels& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply(Sums& sums, const Pixels& a, const uint4& b) {
  multiply(sums.of[0], a, b.x, b.y);
  multiply(sums.of[1], a, b.z, b.w);
}

__device__ __forceinline__ float lower(uint32_t pair) { return float_of(pair << 16); }
__device__ __forceinline__ float upper(uint32_t pair) { return float_of(pair & 0xFFFF0000); }

// Two numbers of a map, of which what is negative becomes 0.
__device__ __forceinline__ uint32_t rectified(float lower, float upper) {
  uint32_t pair;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(upper), "f"(lower));
  return pair;
}

// The biases of the four outputs of a lane, which sums begin with.
__device__ __forceinline__ float4 bias_of(const char* record, uint32_t group, const Lane& l) {
  return __ldg(reinterpret_cast<const float4*>(record) + 4 * group + l.t);
}

__device__ __forceinline__ void begin(Sums& sums, const float4& bias) {
#pragma unroll
  for (int i = 0; i < 8; ++i) sums.at(i / 4, i % 4) = (&bias.x)[i % 4];
}

// Writes the outputs of a pixel, and of the other one, `second` bytes on; where they are added to what goes into the
// block, over that.
template <bool ADDS>
__device__ __forceinline__ void finish(Sums& sums, uint32_t at, uint32_t second) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t to = at + half * second;
    float v[4] = {sums.at(half, 0), sums.at(half, 1), sums.at(half, 2), sums.at(half, 3)};
    if constexpr (ADDS) {
      const uint2 x = load8(to);
      v[0] += lower(x.x), v[1] += upper(x.x), v[2] += lower(x.y), v[3] += upper(x.y);
    }
    store8(to, {rectified(v[0], v[1]), rectified(v[2], v[3])});
  }
}

// Where the outputs of a lane are in a pixel of column x.
template <class M>
__device__ __forceinline__ uint32_t place_of_outputs(uint32_t x, uint32_t group, const Lane& l) {
  return place<M>(x, 2 * group + l.t / 2) + l.t % 2 * 8;
}

// Where a lane loads inputs of a pixel of column x from: a half of those of a block.
template <class M>
__device__ __forceinline__ uint32_t place_of_inputs(uint32_t x, int block, const Lane& l) {
  return place<M>(x, 2 * block + l.quad / 2);
}

// The packed weights of a warp.
struct Source {
  const char* fragments;  // [blocks][groups][steps]
  int groups;
  uint32_t group;

  template <int STEPS>
  __device__ __forceinline__ const char* block(int number) const {
    return fragments + (number * groups + group) * STEPS * kFragment;
  }
};

// Calls `by` with each block of inputs, its weights, and what loads in the place of a weight that of the next block.
// Those of the first are there.
template <int BLOCKS, class By>
__device__ __forceinline__ void each_block(const Fragments& first, const Source& source, const Lane& l, const By& by) {
  Fragments w = first;
#pragma unroll 1
  for (int block = 0; block < BLOCKS; ++block)
    by(block, w, [&](int step) {
      if (block + 1 < BLOCKS) w.step[step] = load_fragment(source.block<kTaps>(block + 1), step, l);
    });
}

// 3x3 of the image: a step is a row of four pixels.
template <int WIDTH, int ROWS>
__device__ __forceinline__ void convolve_image(const Task& task, const char* record, const Lane& l) {
  using M = Map<WIDTH, 0>;
  constexpr Record r = record_of<WIDTH>(Part::image, 0, false);
  Fragments w;
  w.load<r.steps>(record + r.fragments + task.group * r.steps * kFragment, l);
  const float4 bias = bias_of(record, task.group, l);
  const uint32_t from = task.in + task.y * kImageRow + (task.x + l.g + l.t / 2) * kImagePixel + l.t % 2 * 4;
  const uint32_t to = task.out + (task.y + 1) * M::kRow + place_of_outputs<M>(task.x + l.g + 1, task.group, l);
  Sums sums[ROWS];
#pragma unroll
  for (int y = 0; y < ROWS + 2; ++y) {
    Pixels row;
#pragma unroll
    for (int i = 0; i < 4; ++i) row.r[i] = load4(from + y * kImageRow + (i % 2 * 8 + i / 2 * 2) * kImagePixel);
    if (y < ROWS) begin(sums[y], bias);
#pragma unroll
    for (int dy = 0; dy < 3; ++dy)
      if (y - dy >= 0 && y - dy < ROWS) multiply(sums[y - dy], row, w.step[dy]);
    if (y >= 2) finish<false>(sums[y - 2], to + (y - 2) * M::kRow, 8 * M::kPixel);
  }
}

// Adds the shortcut of a block that changes the shape, to tiles that are STEP rows apart: every second pixel of every
// second row of the map before, from `before` on.
template <class Before, int TILES, int STEP>
__device__ __forceinline__ void add_shortcut(Sums (&sums)[TILES], uint32_t row, uint32_t x, const Source& source,
                                             const Lane& l) {
#pragma unroll
  for (int block = 0; block < Before::kChannels / kInputs<2>; ++block) {
    const uint4 weights = load_fragment(source.block<1>(block), 0, l);
    const uint32_t from = row + place_of_inputs<Before>(2 * x + 1, block, l);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile)
      multiply(sums[tile], load_pixels(from + 2 * STEP * tile * Before::kRow), weights);
  }
}

// 3x3 within maps of 32 or 16 pixels a row: a tile is 16 pixels of a row. A row of inputs is loaded once for each of
// the three columns of taps, and serves three rows of outputs.
template <int WIDTH, int STAGE, bool ADDS, bool CHANGES, int ROWS>
__device__ __forceinline__ void same_wide(const Task& task, const Fragments& w, const Source& source,
                                          const Source& shortcut, const float4& bias, const Lane& l) {
  using M = Map<WIDTH, STAGE>;
  constexpr int kBlocks = M::kChannels / kInputs<2>;
  const uint32_t x = task.x + l.row + 8 * (l.quad % 2);
  const uint32_t to = task.out + (task.y + 1) * M::kRow + place_of_outputs<M>(task.x + l.g + 1, task.group, l);
  Sums sums[ROWS];
#pragma unroll
  for (int y = 0; y < ROWS && kBlocks > 1; ++y) begin(sums[y], bias);
  if constexpr (CHANGES) {
    using Before = Map<WIDTH, STAGE - 1>;
    add_shortcut<Before, ROWS, 1>(sums, task.before + (2 * task.y + 1) * Before::kRow, x, shortcut, l);
  }
  each_block<kBlocks>(w, source, l, [&](int block, const Fragments& weights, const auto& replace) {
    uint32_t from[3];
#pragma unroll
    for (int dx = 0; dx < 3; ++dx) from[dx] = task.in + task.y * M::kRow + place_of_inputs<M>(x + dx, block, l);
#pragma unroll
    for (int y = 0; y < ROWS + 2; ++y) {
      Pixels a[3];
#pragma unroll
      for (int dx = 0; dx < 3; ++dx) a[dx] = load_pixels(from[dx] + y * M::kRow);
      if (kBlocks == 1 && y < ROWS) begin(sums[y], bias);
#pragma unroll
      for (int dx = 0; dx < 3; ++dx)
#pragma unroll
        for (int dy = 0; dy < 3; ++dy)
          if (y - dy >= 0 && y - dy < ROWS) multiply(sums[y - dy], a[dx], weights.step[3 * dy + dx]);
#pragma unroll
      for (int dx = 0; dx < 3 && y >= ROWS - 1; ++dx) replace(3 * (y - (ROWS - 1)) + dx);
      if (kBlocks == 1 && y >= 2) finish<ADDS>(sums[y - 2], to + (y - 2) * M::kRow, 8 * M::kPixel);
    }
  });
#pragma unroll
  for (int y = 0; y < ROWS && kBlocks > 1; ++y) finish<ADDS>(sums[y], to + y * M::kRow, 8 * M::kPixel);
}

// 3x3 within maps of 8 pixels a row: a half of a tile is a row. Rows are loaded by pairs, and for the middle taps put
// together anew.
template <int WIDTH, bool ADDS, bool CHANGES, int ROWS>
__device__ __forceinline__ void same_narrow(const Task& task, const Fragments& w, const Source& source,
                                            const Source& shortcut, const float4& bias, const Lane& l) {
  using M = Map<WIDTH, 2>;
  using Before = Map<WIDTH, 1>;
  constexpr int kTiles = ROWS / 2;
  const uint32_t y = task.y + l.quad % 2;
  Sums sums[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) begin(sums[tile], bias);
  if constexpr (CHANGES)
    add_shortcut<Before, kTiles, 2>(sums, task.before + (2 * y + 1) * Before::kRow, l.row, shortcut, l);
  each_block<M::kChannels / kInputs<2>>(w, source, l, [&](int block, const Fragments& weights, const auto& replace) {
#pragma unroll
    for (int dx = 0; dx < 3; ++dx) {
      const uint32_t from = task.in + y * M::kRow + place_of_inputs<M>(l.row + dx, block, l);
      Pixels rows[kTiles + 1];
#pragma unroll
      for (int pair = 0; pair <= kTiles; ++pair) rows[pair] = load_pixels(from + 2 * pair * M::kRow);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const Pixels &above = rows[tile], &below = rows[tile + 1];
        multiply(sums[tile], above, weights.step[dx]);
        multiply(sums[tile], {{above.r[1], below.r[0], above.r[3], below.r[2]}}, weights.step[3 + dx]);
        multiply(sums[tile], below, weights.step[6 + dx]);
      }
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) replace(3 * dy + dx);
    }
  });
  const uint32_t to = task.out + (task.y + 1) * M::kRow + place_of_outputs<M>(l.g + 1, task.group, l);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) finish<ADDS>(sums[tile], to + 2 * tile * M::kRow, M::kRow);
}

// 3x3 with a stride of 2; tiles as above.
template <int WIDTH, int STAGE, int ROWS>
__device__ __forceinline__ void down(const Task& task, const Fragments& w, const Source& source, const float4& bias,
                                     const Lane& l) {
  using M = Map<WIDTH, STAGE>;
  using From = Map<WIDTH, STAGE - 1>;
  constexpr bool kNarrow = M::kSize == 8;
  constexpr int kStep = kNarrow ? 2 : 1, kTiles = ROWS / kStep;
  const uint32_t x = kNarrow ? l.row : l.row + 8 * (l.quad % 2), y = task.y + (kNarrow ? l.quad % 2 : 0);
  Sums sums[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) begin(sums[tile], bias);
  each_block<From::kChannels / kInputs<2>>(w, source, l, [&](int block, const Fragments& weights, const auto& replace) {
#pragma unroll
    for (int dx = 0; dx < 3; ++dx) {
      const uint32_t from = task.in + 2 * y * From::kRow + place_of_inputs<From>(2 * x + dx, block, l);
#pragma unroll
      for (int dy = 0; dy < 3; ++dy)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
          multiply(sums[tile], load_pixels(from + (2 * kStep * tile + dy) * From::kRow), weights.step[3 * dy + dx]);
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) replace(3 * dy + dx);
    }
  });
  const uint32_t to = task.out + (task.y + 1) * M::kRow + place_of_outputs<M>(l.g + 1, task.group, l);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
    finish<false>(sums[tile], to + kStep * tile * M::kRow, kNarrow ? M::kRow : 8 * M::kPixel);
}

// What network.cuh asks of an arithmetic.
template <int WIDTH>
struct Arithmetic {
  static constexpr int kWidth = WIDTH;
  static constexpr int kNumber = 2;        // bytes, of a map
  static constexpr uint32_t kFlipped = 0;  // bits of a number of the image

  struct Pooled {
    float2 of[WIDTH / kOutputs];  // of two channels, and of those 64 on
  };

  static constexpr __device__ __forceinline__ int record_bytes(Part part, int stage, bool changes) {
    return record_of<WIDTH>(part, stage, changes).bytes;
  }

  // The bits of a number of the image.
  static __device__ __forceinline__ uint32_t bits(float value) {
    return __bfloat16_as_ushort(cast<__nv_bfloat16>(value));
  }

  template <int ROWS>
  static __device__ __forceinline__ void convolve_image(const Task& task, const char* record, const Lane& l) {
    bf16::convolve_image<WIDTH, ROWS>(task, record, l);
  }

  // Loads what `convolve` takes: the weights of the first block.
  template <Part PART, int STAGE, bool CHANGES>
  static __device__ __forceinline__ void load(Fragments& w, const char* record, uint32_t group, const Lane& l) {
    constexpr Record r = record_of<WIDTH>(PART, STAGE, CHANGES);
    w.load<r.steps>(record + r.fragments + group * r.steps * kFragment, l);
  }

  template <Part PART, int STAGE, bool CHANGES, int ROWS>
  static __device__ __forceinline__ void convolve(const Task& task, const Fragments& w, const char* record,
                                                  const Lane& l) {
    constexpr Record r = record_of<WIDTH>(PART, STAGE, CHANGES);
    constexpr bool kSecond = PART == Part::second, kAdds = kSecond && !CHANGES, kProducts = kSecond && CHANGES;
    constexpr int kGroups = (WIDTH << STAGE) / kOutputs;
    const Source source = {record + r.fragments, kGroups, task.group};
    const Source shortcut = {record + r.shortcut, kGroups, task.group};
    const float4 bias = bias_of(record, task.group, l);
    if constexpr (CHANGES && !kSecond)
      down<WIDTH, STAGE, ROWS>(task, w, source, bias, l);
    else if constexpr (STAGE < 2)
      same_wide<WIDTH, STAGE, kAdds, kProducts, ROWS>(task, w, source, shortcut, bias, l);
    else
      same_narrow<WIDTH, kAdds, kProducts, ROWS>(task, w, source, shortcut, bias, l);
  }

  static __device__ __forceinline__ void add(Pooled& sums, const Pooled& more) {
#pragma unroll
    for (int i = 0; i < WIDTH / kOutputs; ++i) sums.of[i].x += more.of[i].x, sums.of[i].y += more.of[i].y;
  }

  // Adds channels of a pixel, the first two of which begin at an address.
  static __device__ __forceinline__ void pool(Pooled& sums, uint32_t address) {
#pragma unroll
    for (int i = 0; i < WIDTH / kOutputs; ++i) {
      const uint32_t pair = load4(address + i * 64 * kNumber);
      sums.of[i].x += lower(pair), sums.of[i].y += upper(pair);
    }
  }

  // A logit, of all lanes' channels over all pixels.
  static __device__ __forceinline__ float logit(const Pooled& sums, const char* last, int64_t classes, int64_t number,
                                                const Lane& l) {
    constexpr int kPairs = WIDTH / kOutputs;
    constexpr float kShare = 1.0f / 64;  // of a pixel in the mean
    const auto* weights = reinterpret_cast<const float2*>(last) + number * kPairs * 32 + l.lane;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 w = __ldg(weights + 32 * i);
      sum = fma(sums.of[i].x * kShare, w.x, fma(sums.of[i].y * kShare, w.y, sum));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, distance);
    return sum + __ldg(reinterpret_cast<const float*>(last + last_of<WIDTH>(classes).bias) + number);
  }
};

}  // namespace
}  // namespace bf16
}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
