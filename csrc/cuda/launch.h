// How kernels are launched: grids, shared memory, and which accesses are 16 bytes wide. Plain C++, so that the tests
// that execute the kernels without a device take the very same numbers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../random/philox.h"

namespace smoothfast {

constexpr int kThreads = 256;               // of a block, in every kernel
constexpr int64_t kVectorBytes = 16;        // the widest access there is
constexpr int64_t kSharedBytes = 48 << 10;  // what every device grants a block without being asked
constexpr int kBlocksPerMultiprocessor = 8;

struct Launch {
  int64_t units;  // pieces of work; blocks go through them in strides of the grid
  int32_t grid;
  int32_t shared;  // bytes
};

inline Launch launch_of(int64_t units, int64_t units_per_block, int64_t shared, int multiprocessors) {
  const int64_t blocks = (units + units_per_block - 1) / units_per_block;
  const int64_t most = int64_t{kBlocksPerMultiprocessor} * multiprocessors;
  return {units, static_cast<int32_t>(std::min(blocks, most)), static_cast<int32_t>(shared)};
}

// A block of noisy_replicas takes a chunk of a row: so many steps of 1024 elements, 4 a thread, which it puts together
// in shared memory. Where pixels are interleaved, a step is 1024 pixels of one plane and a chunk is that of all planes.
constexpr int64_t kStepElements = 4 * kThreads, kSteps = 3, kMostPlanes = 4;

struct ReplicaLaunch {
  Launch launch;     // units: chunks of all rows
  int32_t chunks;    // of a row
  int32_t steps;     // of a chunk
  int32_t guide;     // bytes of shared memory for the guide of the lattice law; 0: it is read where it is
  bool interleaved;  // a chunk is put together in memory order
  bool vectorized;   // and written 16 bytes at a time
};

inline ReplicaLaunch replica_launch(int64_t rows, int64_t channels, int64_t plane, int64_t out_bytes,
                                    bool channels_last, bool aligned, int64_t guide_bytes, int multiprocessors) {
  // Noise comes in tiles of 64 elements: planes must not share any.
  const bool interleaved = channels_last && channels <= kMostPlanes && plane % 64 == 0;
  const int64_t steps = interleaved ? channels : kSteps;
  const int64_t chunk = steps * kStepElements, elements = channels * plane, chunks = (elements + chunk - 1) / chunk;
  const bool in_order = interleaved || !channels_last || channels == 1 || plane == 1;
  const int64_t guide = chunk * out_bytes + guide_bytes <= kSharedBytes ? guide_bytes : 0;
  return {launch_of(rows * chunks, 1, chunk * out_bytes + guide, multiprocessors),
          static_cast<int32_t>(chunks),
          static_cast<int32_t>(steps),
          static_cast<int32_t>(guide),
          interleaved,
          aligned && in_order && elements * out_bytes % kVectorBytes == 0};
}

// A warp of tally takes a row of logits.
inline Launch tally_launch(int64_t rows, int multiprocessors) {
  return launch_of(rows, kThreads / 32, 0, multiprocessors);
}

// A thread of replica_sum takes as many neighbours in memory as there are in 16 bytes, or one where they are not
// aligned.
struct SumLaunch {
  Launch launch;  // units: runs of neighbours of all images
  int32_t width;  // of a run
};

inline SumLaunch replica_sum_launch(int64_t images, int64_t elements, int64_t in_bytes, bool aligned,
                                    int multiprocessors) {
  const int64_t widest = kVectorBytes / in_bytes, width = aligned && elements % widest == 0 ? widest : 1;
  return {launch_of(images * (elements / width), kThreads, 0, multiprocessors), static_cast<int32_t>(width)};
}

// A thread of attack_step takes an element (linf), a block an image (l2).
inline Launch attack_step_launch(int64_t images, int64_t elements, bool l2, int multiprocessors) {
  return l2 ? launch_of(images, 1, 0, multiprocessors) : launch_of(images * elements, kThreads, 0, multiprocessors);
}

// A block of perturb_weights takes a chunk of tiles in a pass: so many steps of 16 tiles, of 16 threads each.
constexpr int kTileThreads = kTile / 4, kTilesPerStep = kThreads / kTileThreads, kTileSteps = 4;

inline Launch perturb_launch(int64_t tiles, int64_t passes, int multiprocessors) {
  constexpr int64_t chunk = kTileSteps * kTilesPerStep;
  return launch_of((tiles + chunk - 1) / chunk * passes, 1, 0, multiprocessors);
}

}  // namespace smoothfast
