// What tensor cores of sm_80 and later do with maps in shared memory, for any numbers: lanes, loads and stores.
// Addresses are those of shared memory, in bytes.
#pragma once

#include <cuda_runtime_api.h>

#include "../../fused/mma/map.h"

namespace smoothfast {
namespace fused {
namespace mma {
namespace {

// The number of this thread, read anew: what follows from it is not kept in registers until it is needed again.
__device__ __forceinline__ uint32_t this_thread() {
  uint32_t number;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
  return number;
}

struct Lane {
  uint32_t lane;
  uint32_t g, t;       // of sums: it has those of 4 outputs, 4 t and on, of the pixels g and g + 8 of a tile
  uint32_t row, quad;  // of loads: it gives the address of a row of a matrix

  __device__ Lane() : lane(this_thread() % 32), g(lane / 4), t(lane % 4), row(lane % 8), quad(lane / 8) {}
};

// 16 pixels times the inputs of a step: matrices of 8 pixels, the first and the last, times a half of the inputs, then
// times the other half.
struct Pixels {
  uint32_t r[4];
};

__device__ __forceinline__ Pixels load_pixels(uint32_t address) {
  Pixels a;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a.r[0]), "=r"(a.r[1]), "=r"(a.r[2]), "=r"(a.r[3])
               : "r"(address));
  return a;
}

// The weights of a step and 16 outputs, from the packed network: a lane has those of its own.
__device__ __forceinline__ uint4 load_fragment(const char* fragments, int number, const Lane& l) {
  uint4 b;
  asm volatile("ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(b.x), "=r"(b.y), "=r"(b.z), "=r"(b.w)
               : "l"(fragments + number * kFragment + l.lane * kChunk));
  return b;
}

// What a warp has of a layer at a time, loaded while the layer before is computed.
struct Fragments {
  uint4 step[9];

  template <int STEPS>
  __device__ __forceinline__ void load(const char* fragments, const Lane& l) {
#pragma unroll
    for (int i = 0; i < STEPS; ++i) step[i] = load_fragment(fragments, i, l);
  }
};

// Of 16 pixels and 16 outputs: [pair of outputs][pixel g: two outputs, pixel g + 8: two outputs].
template <class Number>
struct Sums {
  Number of[2][4];

  __device__ __forceinline__ Number& at(int half, int output) { return of[output / 2][2 * half + output % 2]; }
};

__device__ __forceinline__ uint32_t load4(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

__device__ __forceinline__ uint32_t load2(uint32_t address) {
  uint16_t v;
  asm volatile("ld.shared.b16 %0, [%1];" : "=h"(v) : "r"(address));
  return v;
}

__device__ __forceinline__ uint2 load8(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}

__device__ __forceinline__ void store8(uint32_t address, const uint2& v) {
  asm volatile("st.shared.v2.b32 [%0], {%1,%2};" ::"r"(address), "r"(v.x), "r"(v.y));
}

__device__ __forceinline__ void store4(uint32_t address, uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(v));
}

__device__ __forceinline__ void store2(uint32_t address, uint32_t v) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(static_cast<uint16_t>(v)));
}

// A chunk of one word.
__device__ __forceinline__ void fill(uint32_t address, uint32_t word) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%1,%1,%1};" ::"r"(address), "r"(word));
}

// Of all threads of a block.
__device__ __forceinline__ void barrier() { asm volatile("bar.sync 0;" ::: "memory"); }

// The part of a layer that a warp computes: 16 outputs, the first of which is 16 times `group`, of rows from y on. Maps
// of 32 pixels a row are computed by halves, from x on. `before` is the map that the block takes.
struct Task {
  uint32_t in, out, before, group, x, y;
};

// Zeros around a map.
template <class M>
__device__ __forceinline__ void surround(uint32_t map) {
  constexpr uint32_t kLine = M::kSize + 1, kAbove = kLine + 1, kPixels = 3 * kLine;
  for (uint32_t i = threadIdx.x; i < kPixels * M::kChunks; i += 32 * kWarps) {
    const uint32_t n = i / M::kChunks;
    const uint32_t pixel = n < kAbove                  ? n
                           : n < kAbove + M::kSize - 1 ? (n - M::kSize) * kLine
                                                       : kLine * kLine + n - (kAbove + M::kSize - 1);
    fill(map + pixel * M::kPixel + i % M::kChunks * kChunk, 0);
  }
}

}  // namespace
}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
