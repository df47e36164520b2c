// A CIFAR ResNet in integers on tensor cores: maps of uint8, weights of int8, sums of int32.
#pragma once

#include "../../fused/mma/integers.h"
#include "tiles.cuh"

namespace smoothfast {
namespace fused {
namespace mma {
namespace integers {
namespace {

template <int STAGE>
using Map = mma::Map<1, STAGE>;

using Sums = mma::Sums<int32_t>;

__device__ __forceinline__ void multiply(int32_t (&d)[4], const Pixels& a, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply(Sums& sums, const Pixels& a, const uint4& b) {
  multiply(sums.of[0], a, b.x, b.y);
  multiply(sums.of[1], a, b.z, b.w);
}

// What becomes of the sums of the four outputs of a lane.
struct Outputs {
  float4 scale, bias;
  int4 factors;
};

template <class Four>
__device__ __forceinline__ Four four_of(const char* line, uint32_t group, const Lane& l) {
  return __ldg(reinterpret_cast<const Four*>(line) + 4 * group + l.t);
}

template <Part PART, int STAGE, bool CHANGES>
__device__ __forceinline__ Outputs outputs_of(const char* record, uint32_t group, const Lane& l) {
  constexpr Record r = record_of(PART, STAGE, CHANGES);
  Outputs o = {four_of<float4>(record + r.scale, group, l), four_of<float4>(record + r.bias, group, l), {}};
  if (PART == Part::second) o.factors = four_of<int4>(record + r.factors, group, l);
  return o;
}

__device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
  for (int i = 0; i < 8; ++i) sums.of[i / 4][i % 4] = 0;
}

// Sums begin with the shortcut: where the shape stays, the map that they will be written over.
template <bool ADDS>
__device__ __forceinline__ void begin(Sums& sums, uint32_t at, uint32_t second, const Outputs& o) {
  clear(sums);
  if constexpr (ADDS) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t x = load4(at + half * second);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.at(half, i) = static_cast<int32_t>(x >> 8 * i & 255) * (&o.factors.x)[i];
    }
  }
}

// Where it changes, a 1x1 convolution of the map before the block.
__device__ __forceinline__ void begin_with(Sums& sums, uint32_t before, const uint4& weights, const Outputs& o) {
  clear(sums);
  multiply(sums, load_pixels(before), weights);
#pragma unroll
  for (int i = 0; i < 8; ++i) sums.of[i / 4][i % 4] *= (&o.factors.x)[i / 4 * 2 + i % 2];
}

// The number of the next map, as the lowest byte. Limits are integers, so rounding may come last: from 2^23 on, floats
// are whole numbers. A conversion would take four times as long.
__device__ __forceinline__ uint32_t rounded(int32_t sum, float scale, float bias) {
  const float value = fma(static_cast<float>(sum), scale, bias);
  return bits_of(fminf(fmaxf(value, 0.0f), 255.0f) + 8388608.0f);
}

// Writes the outputs of a pixel.
__device__ __forceinline__ void write(Sums& sums, int half, uint32_t at, const float4& scale, const float4& bias) {
  uint32_t n[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) n[i] = rounded(sums.at(half, i), (&scale.x)[i], (&bias.x)[i]);
  store4(at, __byte_perm(__byte_perm(n[0], n[1], 0x40), __byte_perm(n[2], n[3], 0x40), 0x5410));
}

// Writes the outputs of a pixel, and of the other one, `second` bytes on.
__device__ __forceinline__ void finish(Sums& sums, uint32_t at, uint32_t second, const Outputs& o) {
  write(sums, 0, at, o.scale, o.bias);
  write(sums, 1, at + second, o.scale, o.bias);
}

// 3x3 of the image: 16 pixels of it a row, three numbers each of two digits. Sums are made from the highest digit down,
// modulo 2^32: they are below 2^31.
__device__ __forceinline__ void multiply_digits(Sums& sums, const Pixels* rows, const Fragments& w,
                                                const int4& addends) {
  clear(sums);
#pragma unroll
  for (int digit = 0; digit < kDigits; ++digit) {
#pragma unroll
    for (int i = 0; i < 8 && digit > 0; ++i) {
      const uint32_t more = digit == 1 ? (&addends.x)[i / 4 * 2 + i % 2] : 0, sum = sums.of[i / 4][i % 4];
      sums.of[i / 4][i % 4] = static_cast<int32_t>((sum << 8) + more);
    }
#pragma unroll
    for (int row = 0; row < 3; ++row) multiply(sums, rows[row], w.step[3 * digit + row]);
  }
}

template <int ROWS>
__device__ __forceinline__ void convolve_image(const Task& task, const char* record, const Lane& l) {
  using M = Map<0>;
  constexpr Record r = record_of(Part::image, 0, false);
  Fragments w;
  w.load<r.steps>(record + r.fragments, l);
  const float4 scale = four_of<float4>(record + r.scale, 0, l);
  const int4 addends = four_of<int4>(record + r.factors, 0, l);
  const uint32_t from = task.in + task.y * kImageRow + (task.x + l.g + l.t / 2) * kImagePixel + l.t % 2 * 4;
  const uint32_t x = task.x + l.g, to = task.out + (task.y + 1) * M::kRow + (x + 1) * M::kPixel + 4 * l.t;
  Pixels rows[ROWS + 2];
#pragma unroll
  for (int y = 0; y < ROWS + 2; ++y) {
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[y].r[i] = load4(from + y * kImageRow + (i % 2 * 8 + i / 2 * 2) * kImagePixel);
    if (y < 2) continue;
    Sums sums;
    multiply_digits(sums, rows + y - 2, w, addends);
    const uint32_t above = task.y + y - 2, line = above == 0 ? 0 : above == 31 ? 2 : 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t column = half == 0 ? (x == 0 ? 0 : 1) : (x + 8 == 31 ? 2 : 1);
      const float4 bias = four_of<float4>(record + r.bias, 3 * line + column, l);
      write(sums, half, to + (y - 2) * M::kRow + half * 8 * M::kPixel, scale, bias);
    }
  }
}

// 3x3 of 16 inputs, within maps of 32 pixels a row: see record_of for what a step takes.
template <bool ADDS, int ROWS>
__device__ __forceinline__ void same16(const Task& task, const Fragments& w, const Outputs& o, const Lane& l) {
  using M = Map<0>;
  const uint32_t x = task.x + l.row + 8 * (l.quad % 2);
  const uint32_t left = task.in + task.y * M::kRow + (x + l.quad / 2) * M::kPixel;
  const uint32_t right = task.in + (task.y + l.quad / 2) * M::kRow + (x + 2) * M::kPixel;
  const uint32_t to = task.out + (task.y + 1) * M::kRow + (task.x + l.g + 1) * M::kPixel + 4 * l.t;
  Sums sums[ROWS];
  uint32_t column[ROWS + 2][2];  // of the right taps
#pragma unroll
  for (int y = 0; y < ROWS + 2; ++y) {
    const Pixels two = load_pixels(left + y * M::kRow);
    if (y % 2 == 0) {
      const Pixels rows = load_pixels(right + y * M::kRow);
      column[y][0] = rows.r[0], column[y][1] = rows.r[1], column[y + 1][0] = rows.r[2], column[y + 1][1] = rows.r[3];
    }
    if (y < ROWS) begin<ADDS>(sums[y], to + y * M::kRow, 8 * M::kPixel, o);
#pragma unroll
    for (int dy = 0; dy < 3; ++dy)
      if (y - dy >= 0 && y - dy < ROWS) multiply(sums[y - dy], two, w.step[dy]);
    if (y >= 1 && y <= ROWS)
      multiply(sums[y - 1], {{column[y - 1][0], column[y - 1][1], column[y][0], column[y][1]}}, w.step[3]);
    if (y < 2) continue;
    multiply(sums[y - 2], {{column[y][0], column[y][1], column[y][0], column[y][1]}}, w.step[4]);
    finish(sums[y - 2], to + (y - 2) * M::kRow, 8 * M::kPixel, o);
  }
}

// 3x3 of 16 inputs with a stride of 2.
template <int ROWS>
__device__ __forceinline__ void down16(const Task& task, const Fragments& w, const Outputs& o, const Lane& l) {
  using From = Map<0>;
  using M = Map<1>;
  const uint32_t x = 2 * (l.row + 8 * (l.quad % 2));
  const uint32_t left = task.in + 2 * task.y * From::kRow + (x + l.quad / 2) * From::kPixel;
  const uint32_t right = task.in + (2 * task.y + l.quad / 2) * From::kRow + (x + 2) * From::kPixel;
  const uint32_t to = task.out + (task.y + 1) * M::kRow + place<M>(l.g + 1, task.group) + 4 * l.t;
  Pixels column[ROWS + 1];
#pragma unroll
  for (int y = 0; y <= ROWS; ++y) column[y] = load_pixels(right + 2 * y * From::kRow);
#pragma unroll
  for (int y = 0; y < ROWS; ++y) {
    const Pixels& next = column[y + 1];
    Sums sums;
    clear(sums);
#pragma unroll
    for (int dy = 0; dy < 3; ++dy) multiply(sums, load_pixels(left + (2 * y + dy) * From::kRow), w.step[dy]);
    multiply(sums, column[y], w.step[3]);
    multiply(sums, {{next.r[0], next.r[1], next.r[0], next.r[1]}}, w.step[4]);
    finish(sums, to + y * M::kRow, 8 * M::kPixel, o);
  }
}

// 3x3 of 32 inputs, within maps of 16 pixels a row.
template <bool ADDS, bool CHANGES, int ROWS>
__device__ __forceinline__ void same32(const Task& task, const Fragments& w, const uint4& shortcut, const Outputs& o,
                                       const Lane& l) {
  using M = Map<1>;
  using Before = Map<0>;
  const uint32_t x = l.row + 8 * (l.quad % 2);
  const uint32_t to = task.out + (task.y + 1) * M::kRow + place<M>(l.g + 1, task.group) + 4 * l.t;
  const uint32_t before = task.before + (2 * task.y + 1) * Before::kRow + (2 * x + 1) * Before::kPixel;
  uint32_t from[3];
#pragma unroll
  for (int dx = 0; dx < 3; ++dx) from[dx] = task.in + task.y * M::kRow + place<M>(x + dx, l.quad / 2);
  Sums sums[ROWS];
#pragma unroll
  for (int y = 0; y < (CHANGES ? ROWS : 0); ++y) begin_with(sums[y], before + 2 * y * Before::kRow, shortcut, o);
#pragma unroll
  for (int y = 0; y < ROWS + 2; ++y) {
    Pixels a[3];
#pragma unroll
    for (int dx = 0; dx < 3; ++dx) a[dx] = load_pixels(from[dx] + y * M::kRow);
    if (y < ROWS && !CHANGES) begin<ADDS>(sums[y], to + y * M::kRow, 8 * M::kPixel, o);
#pragma unroll
    for (int dx = 0; dx < 3; ++dx)
#pragma unroll
      for (int dy = 0; dy < 3; ++dy)
        if (y - dy >= 0 && y - dy < ROWS) multiply(sums[y - dy], a[dx], w.step[3 * dy + dx]);
    if (y >= 2) finish(sums[y - 2], to + (y - 2) * M::kRow, 8 * M::kPixel, o);
  }
}

// 3x3 of 32 inputs with a stride of 2, to maps of 8 pixels a row: a tile is two rows.
template <int ROWS>
__device__ __forceinline__ void down32(const Task& task, const Fragments& w, const Outputs& o, const Lane& l) {
  using From = Map<1>;
  using M = Map<2>;
  constexpr int kTiles = ROWS / 2;
  const uint32_t to = task.out + (task.y + 1) * M::kRow + place<M>(l.g + 1, task.group) + 4 * l.t;
  Sums sums[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) clear(sums[tile]);
#pragma unroll
  for (int dx = 0; dx < 3; ++dx) {
    const uint32_t from = task.in + 2 * (task.y + l.quad % 2) * From::kRow + place<From>(2 * l.row + dx, l.quad / 2);
#pragma unroll
    for (int dy = 0; dy < 3; ++dy)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        multiply(sums[tile], load_pixels(from + (4 * tile + dy) * From::kRow), w.step[3 * dy + dx]);
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) finish(sums[tile], to + 2 * tile * M::kRow, M::kRow, o);
}

// A block of 32 inputs of a 3x3, within maps of 8 pixels a row: a half of a tile is a row. Rows are loaded by pairs,
// and for the middle taps put together anew.
template <int TILES>
__device__ __forceinline__ void multiply64(Sums (&sums)[TILES], const Task& task, int block, const Fragments& w,
                                           const Lane& l) {
  using M = Map<2>;
#pragma unroll
  for (int dx = 0; dx < 3; ++dx) {
    const uint32_t from = task.in + (task.y + l.quad % 2) * M::kRow + place<M>(l.row + dx, 2 * block + l.quad / 2);
    Pixels rows[TILES + 1];
#pragma unroll
    for (int p = 0; p <= TILES; ++p) rows[p] = load_pixels(from + 2 * p * M::kRow);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      const Pixels &above = rows[tile], &below = rows[tile + 1];
      multiply(sums[tile], above, w.step[dx]);
      multiply(sums[tile], {{above.r[1], below.r[0], above.r[3], below.r[2]}}, w.step[3 + dx]);
      multiply(sums[tile], below, w.step[6 + dx]);
    }
  }
}

// 3x3 of 64 inputs; w has the weights of the first 32, `rest` those of the others.
template <bool ADDS, bool CHANGES, int ROWS>
__device__ __forceinline__ void same64(const Task& task, const Fragments& w, const char* rest, const uint4& shortcut,
                                       const Outputs& o, const Lane& l) {
  using M = Map<2>;
  using Before = Map<1>;
  constexpr int kTiles = ROWS / 2;
  const uint32_t to = task.out + (task.y + 1) * M::kRow + place<M>(l.g + 1, task.group) + 4 * l.t;
  const uint32_t before =
      task.before + (2 * (task.y + l.quad % 2) + 1) * Before::kRow + place<Before>(2 * l.row + 1, l.quad / 2);
  Sums sums[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    if (CHANGES)
      begin_with(sums[tile], before + 4 * tile * Before::kRow, shortcut, o);
    else
      begin<ADDS>(sums[tile], to + 2 * tile * M::kRow, M::kRow, o);
  }
  Fragments others;
  others.load<kTaps>(rest, l);
  multiply64(sums, task, 0, w, l);
  multiply64(sums, task, 1, others, l);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) finish(sums[tile], to + 2 * tile * M::kRow, M::kRow, o);
}

// What network.cuh asks of an arithmetic.
struct Arithmetic {
  static constexpr int kWidth = mma::kWidth;
  static constexpr int kNumber = 1;             // bytes, of a map
  static constexpr uint32_t kFlipped = 0x8000;  // bits of a number of the image, which becomes two digits, 0 to 255
  using Pooled = int2;                          // of two channels

  static constexpr __device__ __forceinline__ int record_bytes(Part part, int stage, bool changes) {
    return record_of(part, stage, changes).bytes;
  }

  // The bits of a number of the image: the nearest, and 0 for NaN.
  static __device__ __forceinline__ uint32_t bits(float value) {
    return static_cast<uint32_t>(min(max(__float2int_rn(value), -32768), 32767));
  }

  template <int ROWS>
  static __device__ __forceinline__ void convolve_image(const Task& task, const char* record, const Lane& l) {
    integers::convolve_image<ROWS>(task, record, l);
  }

  // Loads what `convolve` takes.
  template <Part PART, int STAGE, bool CHANGES>
  static __device__ __forceinline__ void load(Fragments& w, const char* record, uint32_t group, const Lane& l) {
    constexpr Record r = record_of(PART, STAGE, CHANGES);
    w.load<r.steps>(record + r.fragments + group * r.steps * kFragment, l);
  }

  template <Part PART, int STAGE, bool CHANGES, int ROWS>
  static __device__ __forceinline__ void convolve(const Task& task, const Fragments& w, const char* record,
                                                  const Lane& l) {
    constexpr Record r = record_of(PART, STAGE, CHANGES);
    constexpr bool kAdds = PART == Part::second, kProducts = kAdds && CHANGES;
    const Outputs o = outputs_of<PART, STAGE, CHANGES>(record, task.group, l);
    uint4 shortcut = {};
    if (kProducts) shortcut = load_fragment(record + r.shortcut, task.group, l);
    if constexpr (STAGE == 0) same16<kAdds, ROWS>(task, w, o, l);
    if constexpr (STAGE == 1 && CHANGES && !kAdds) down16<ROWS>(task, w, o, l);
    if constexpr (STAGE == 1 && (!CHANGES || kAdds)) same32<kAdds, kProducts, ROWS>(task, w, shortcut, o, l);
    if constexpr (STAGE == 2 && CHANGES && !kAdds) down32<ROWS>(task, w, o, l);
    if constexpr (STAGE == 2 && (!CHANGES || kAdds)) {
      const char* rest = record + r.fragments + (4 + task.group) * r.steps * kFragment;
      same64<kAdds, kProducts, ROWS>(task, w, rest, shortcut, o, l);
    }
  }

  static __device__ __forceinline__ void add(Pooled& sums, const Pooled& more) { sums.x += more.x, sums.y += more.y; }

  // Adds two channels of a pixel, which begin at an address.
  static __device__ __forceinline__ void pool(Pooled& sums, uint32_t address) {
    const uint32_t pair = load2(address);
    sums.x += static_cast<int32_t>(pair & 255), sums.y += static_cast<int32_t>(pair >> 8);
  }

  // A logit, of all lanes' channels over all pixels.
  static __device__ __forceinline__ float logit(const Pooled& sums, const char* last, int64_t classes, int64_t number,
                                                const Lane& l) {
    const Last at = last_of(classes);
    const short2 weights = __ldg(reinterpret_cast<const short2*>(last) + number * 32 + l.lane);
    int32_t sum = sums.x * weights.x + sums.y * weights.y;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, distance);
    sum += __ldg(reinterpret_cast<const int32_t*>(last + at.bias) + number);
    return static_cast<float>(sum) * __ldg(reinterpret_cast<const float*>(last + at.unit));
  }
};

}  // namespace
}  // namespace integers
}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
