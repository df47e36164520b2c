// Pixels with noise, clipped and normalised: for noisy_replicas, and for fused_votes before its network.
#pragma once

#include "../random/gaussian.h"
#include "../random/lattice.h"
#include "../random/philox.h"
#include "noisy_replicas.h"

namespace smoothfast {
namespace {

template <class Pixel>
struct Replica {  // one row
  const Pixel* image;
  Row row;
  Key key;
};

__device__ __forceinline__ uint32_t of_sigma(const ReplicaArgs& args, uint32_t channel) {
  return args.sigmas == 1 ? 0 : channel;
}

// A law gives the noise of two elements of one Philox block.
struct LatticeLaw {
  template <class Pixel>
  static __device__ __forceinline__ float draw(const ReplicaArgs& args, const Replica<Pixel>& replica,
                                               const int32_t* guide, uint32_t channel, uint32_t element,
                                               uint32_t word) {
    const uint32_t sigma = of_sigma(args, channel);
    const Lattice law = {args.high + int64_t{2} * sigma * args.reach, args.low + int64_t{2} * sigma * args.reach,
                         guide + sigma * args.entries, args.reach, args.guide_shift};
    const Draw draw = guided_draw(word, biased_guide(law), law.shift);
    const bool sure = !draw.unsure;
    return static_cast<float>(sure ? draw.noise
                                   : exact_draw(law, word, refining_bits(element, replica.row, replica.key)));
  }

  template <class Pixel>
  static __device__ __forceinline__ float2 pair(const ReplicaArgs& args, const Replica<Pixel>& replica,
                                                const int32_t* guide, const uint32_t (&channels)[2], uint32_t element,
                                                uint32_t word0, uint32_t word1) {
    return {draw(args, replica, guide, channels[0], element, word0),
            draw(args, replica, guide, channels[1], element + 16, word1)};
  }

  static __device__ __forceinline__ float noisy(const ReplicaArgs&, uint32_t, float pixel, float noise) {
    return pixel + noise;  // integers below 2^24: exact
  }
};

struct GaussianLaw {
  template <class Pixel>
  static __device__ __forceinline__ float2 pair(const ReplicaArgs&, const Replica<Pixel>&, const int32_t*,
                                                const uint32_t (&)[2], uint32_t, uint32_t word0, uint32_t word1) {
    const NormalPair z = box_muller(word0, word1);
    return {z.z0, z.z1};
  }

  static __device__ __forceinline__ float noisy(const ReplicaArgs& args, uint32_t channel, float pixel, float noise) {
    return fma(noise, args.sigma[of_sigma(args, channel)], pixel);
  }
};

template <class Law>
__device__ __forceinline__ float finish(const ReplicaArgs& args, uint32_t channel, float pixel, float noise) {
  const float value = clip(Law::noisy(args, channel, pixel, noise), args.least, args.most);
  return fma(value, args.scale[channel], args.shift[channel]);
}

}  // namespace
}  // namespace smoothfast
