// 16 threads take a tile, one Philox block and thus four weights each (docs/noise.md), and go through the tiles of a
// chunk. The normals that the weights of a layer share are drawn by the same threads, a block each, when the layer
// changes, and are passed around.
#include "../random/gaussian.h"
#include "cast.h"
#include "perturb_weights.h"

namespace smoothfast {
namespace {

constexpr int kWords = 4;  // of a Philox block

struct Normals {
  float z[kWords];  // of elements 16 apart
};

__device__ __forceinline__ Normals draw(int64_t layer, int64_t pass, uint32_t tag, uint32_t block, Key key) {
  const Row row = make_row(layer, pass, tag);
  const Counter words = philox({block, row.c1, row.c2, row.c3}, key);
  const NormalPair first = box_muller(words.c0, words.c1), second = box_muller(words.c2, words.c3);
  return {first.z0, first.z1, second.z0, second.z1};
}

// Normal k of a tile whose blocks its threads hold, a thread each. All threads of the warp come here.
__device__ __forceinline__ float normal_of(const Normals& mine, uint32_t k) {
  const float z = k < 32 ? (k < 16 ? mine.z[0] : mine.z[1]) : (k < 48 ? mine.z[2] : mine.z[3]);
  const uint32_t first = threadIdx.x % 32 / kTileThreads * kTileThreads;  // thread of the tile, in the warp
  return __shfl_sync(0xFFFFFFFF, z, static_cast<int>(first + k % kTileThreads));
}

template <class Stored>
__global__ void __launch_bounds__(kThreads) perturb_weights_kernel(const PerturbArgs args) {
  const Key key = make_key(args.key[0]);
  const uint32_t tag = static_cast<uint32_t>(args.key[1]), block = threadIdx.x % kTileThreads;
  for (uint32_t unit = blockIdx.x; unit < args.units; unit += gridDim.x) {
    const uint32_t chunk = unit / args.passes, at_pass = unit - chunk * args.passes;
    const int64_t pass = args.pass_numbers[at_pass];
    int64_t drawn = -1;  // the layer of `shared`
    Normals shared = {};
#pragma unroll 1
    for (uint32_t step = 0; step < kTileSteps; ++step) {
      const int64_t tile = (int64_t{chunk} * kTileSteps + step) * kTilesPerStep + threadIdx.x / kTileThreads;
      const bool live = tile < args.tiles;
      const int64_t first = tile * kTile + block;
      float sums[kWords] = {};
      if (live) {
        const int64_t layer = args.places[tile], number = args.places[args.tiles + tile];
        if (args.rank > 0 && layer != drawn) shared = draw(layer + kLowRank, pass, tag, block, key);
        drawn = layer;
        const Normals own = draw(layer, pass, tag, static_cast<uint32_t>(number) * kTileThreads + block, key);
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          const int64_t at = first + w * kTileThreads;
          sums[w] = fma(args.scales[at], own.z[w], args.weights[at]);
        }
      }
#pragma unroll 1
      for (uint32_t k = 0; k < args.rank; ++k) {
        const float normal = normal_of(shared, k);
        if (!live) continue;
        const float* factor = args.factors + k * args.tiles * kTile + first;
#pragma unroll
        for (int w = 0; w < kWords; ++w) sums[w] = fma(factor[w * kTileThreads], normal, sums[w]);
      }
      if (!live) continue;
      Stored* out = static_cast<Stored*>(args.out) + at_pass * args.tiles * kTile + first;
#pragma unroll
      for (int w = 0; w < kWords; ++w) out[w * kTileThreads] = cast<Stored>(sums[w]);
    }
  }
}

}  // namespace

void perturb_weights(const PerturbArgs& args, const Launch& launch, Dtype dtype, cudaStream_t stream) {
  const auto kernel = dtype == Dtype::f32    ? perturb_weights_kernel<float>
                      : dtype == Dtype::bf16 ? perturb_weights_kernel<__nv_bfloat16>
                                             : perturb_weights_kernel<__half>;
  kernel<<<launch.grid, kThreads, launch.shared, stream>>>(args);
}

}  // namespace smoothfast
