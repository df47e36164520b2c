// The work that the wrapper (noisy_replicas.cpp) hands to the kernel body (noisy_replicas_kernel.h). No torch here.
#pragma once

#include <cstdint>

#include "../random/gaussian.h"
#include "../random/lattice.h"
#include "../random/philox.h"
#include "../rules/types.h"

namespace smoothfast {

// A strip is a run of pixels of one channel; a tile is the same strip of one channel, or of all three at once where
// their pixels are interleaved in memory. All buffers of a tile stay in a 32 KiB L1 cache.
constexpr int kTilePixels = 1024, kInterleavedPixels = 512, kMaxGroup = 3;
constexpr int kBufferWords = kMaxGroup * (kInterleavedPixels + 2 * kTile);
static_assert(kBufferWords >= kTilePixels + 2 * kTile);

// Replica rows [first, last) that copy one image under one image id and one upper half of the sample id.
struct RowRun {
  int64_t first, last;
  int64_t slot;
};

struct Replicas {
  const void* images;  // [S, C, plane], uint8 or float32
  void* out;           // [R, C, plane] or [R, plane, C]
  const int64_t* image_ids;
  const int64_t* sample_ids;
  Key key;
  uint32_t stream;
  int64_t channels, plane;
  bool channels_last;
  const Lattice* lattice;  // per channel; null for the Gaussian law
  const float* sigma;      // per channel, in units of the images; null for the lattice law
  const float* scale;      // per channel
  const float* shift;
  float low, high;  // clamp of the noisy image; -inf and inf where it is not clipped
};

// Channels [channel, channel + group), pixels [begin, end).
struct Tile {
  int64_t channel, begin, end;
  int group;
};

using TileKernel = void (*)(const Replicas&, const RowRun&, const Tile&);

struct ReplicaKernels {
  TileKernel lattice[2][5];  // [float image][Dtype]; lattice noise needs uint8 images: the second row is null, as f64
  TileKernel gaussian[2][5];
  void (*words)(Key key, Row row, uint32_t first_block, int blocks, uint32_t* out);                    // for tests
  void (*draws)(const Lattice& law, const uint32_t* words, int count, int32_t* out, uint8_t* unsure);  // for tests
};

const ReplicaKernels& replica_kernels();

}  // namespace smoothfast
