// The work that the wrapper (perturb_weights.cpp) hands to the kernel body (perturb_weights_kernel.h). No torch here.
#pragma once

#include <cstdint>

#include "../random/gaussian.h"
#include "../random/philox.h"
#include "../rules/types.h"

namespace smoothfast {

// Buffers of a task stay in L1, with rank 5 its inputs too; the normals that its tiles share are a sixteenth of all.
constexpr int kTilesPerRun = 16, kRunWeights = kTilesPerRun * kTile;

// Tiles [first, first + count) of all are tiles [number, number + count) of a layer.
struct TileRun {
  int64_t first, layer, number;
  int count;
};

// Passes [first, last) share the upper word of their numbers.
struct PassRun {
  int64_t first, last;
};

struct Perturbation {
  const float* weights;  // [tiles, kTile]
  const float* scales;   // [tiles, kTile]
  const float* factors;  // [rank, tiles, kTile]
  void* out;             // [passes, tiles, kTile]
  const int64_t* passes;
  Key key;
  uint32_t tag;
  int64_t tiles;
  int rank;
};

using PerturbKernel = void (*)(const Perturbation&, const TileRun&, const PassRun&);

struct PerturbKernels {
  PerturbKernel by_dtype[3];
};

}  // namespace smoothfast
