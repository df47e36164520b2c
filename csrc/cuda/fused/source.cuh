// The image of a sample in shared memory, with its noise.
#pragma once

#include "../noise.cuh"
#include "tiles.cuh"
#include "votes.h"

namespace smoothfast {
namespace fused {
namespace mma {
namespace {

constexpr uint32_t kPlane = 32 * 32, kDraws = kImageElements / 4;  // Philox gives numbers by fours

template <class Numbers>
__device__ __forceinline__ void write_number(uint32_t image, uint32_t element, uint32_t bits) {
  const uint32_t channel = element / kPlane, y = element / 32 % 32, x = element % 32;
  store2(image + (y + 1) * kImageRow + (x + 1) * kImagePixel + 2 * channel, bits ^ Numbers::kFlipped);
}

// Zeros, so that those around the image stay.
template <class Numbers>
__device__ __forceinline__ void clear_image(uint32_t image) {
  for (uint32_t i = threadIdx.x; i < kImageBytes / kChunk; i += kThreads)
    fill(image + i * kChunk, Numbers::kFlipped << 16 | Numbers::kFlipped);
}

template <class Numbers, class Law, class Pixel>
__device__ __forceinline__ void draw(const ReplicaArgs& args, uint32_t image, const Replica<Pixel>& replica,
                                     const int32_t* guide, uint32_t block) {
  const Counter words = philox({block, replica.row.c1, replica.row.c2, replica.row.c3}, replica.key);
  const uint32_t first = block / 16 * 64 + block % 16, channel = first / kPlane;
  const uint32_t channels[2] = {channel, channel};
#pragma unroll
  for (uint32_t w = 0; w < 4; w += 2) {
    const uint32_t element = first + 16 * w;
    const float2 noise =
        Law::pair(args, replica, guide, channels, element, w ? words.c2 : words.c0, w ? words.c3 : words.c1);
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t here = element + 16 * i;
      const float value = finish<Law>(args, channel, static_cast<float>(replica.image[here]), i ? noise.y : noise.x);
      write_number<Numbers>(image, here, Numbers::bits(value));
    }
  }
}

template <class Numbers, class Law, class Pixel>
__device__ __forceinline__ void draw_row(const ReplicaArgs& args, uint32_t image, int64_t row, int64_t slot,
                                         const int32_t* guide) {
  const Replica<Pixel> replica = {
      static_cast<const Pixel*>(args.images) + slot * kImageElements,
      make_row(args.image_ids[row], args.sample_ids[row], static_cast<uint32_t>(args.key[1])), make_key(args.key[0])};
#pragma unroll 1
  for (uint32_t block = threadIdx.x; block < kDraws; block += kThreads)
    draw<Numbers, Law>(args, image, replica, guide, block);
}

template <class Numbers>
__device__ __forceinline__ void copy_row(const ReplicaArgs& args, uint32_t image, int64_t row) {
  const auto* from = static_cast<const uint16_t*>(args.images) + row * kImageElements;
  for (uint32_t i = threadIdx.x; i < kImageElements; i += kThreads) write_number<Numbers>(image, i, from[i]);
}

// Writes the numbers of a row.
template <class Numbers>
__device__ __forceinline__ void make_image(const VotesArgs& args, uint32_t image, int64_t row, int64_t slot,
                                           const int32_t* guide) {
  const ReplicaArgs& replicas = args.replicas;
  switch (args.source) {
    case Source::given:
      return copy_row<Numbers>(replicas, image, row);
    case Source::lattice:
      return draw_row<Numbers, LatticeLaw, uint8_t>(replicas, image, row, slot, guide);
    case Source::gaussian:
      return draw_row<Numbers, GaussianLaw, uint8_t>(replicas, image, row, slot, guide);
    case Source::gaussian_of_floats:
      return draw_row<Numbers, GaussianLaw, float>(replicas, image, row, slot, guide);
  }
}

}  // namespace
}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
