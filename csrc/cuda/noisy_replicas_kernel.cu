// A block draws a chunk of a row, one Philox block and thus four elements of a tile (docs/noise.md) a thread and step,
// puts it together in shared memory and writes it 16 bytes a thread.
#include "../random/gaussian.h"
#include "../random/lattice.h"
#include "../random/philox.h"
#include "cast.h"
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

// ---- laws: the noise of two elements of one Philox block -----------------------------------------------------------

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

// ---- a chunk -------------------------------------------------------------------------------------------------------

// Elements [begin, end) of a row, in the order of noise, one step of a chunk.
struct Step {
  uint32_t begin, end;
};

__device__ __forceinline__ Step step_of(const ReplicaArgs& args, uint32_t chunk, uint32_t step) {
  if (args.interleaved)
    return {step * args.plane + chunk * static_cast<uint32_t>(kStepElements), (step + 1) * args.plane};
  return {(chunk * args.steps + step) * static_cast<uint32_t>(kStepElements), args.channels * args.plane};
}

template <class Law, class Stored, class Pixel>
__device__ __forceinline__ void draw_step(const ReplicaArgs& args, const Replica<Pixel>& replica, const int32_t* guide,
                                          Step at, uint32_t step, Stored* chunk) {
  const Row& row = replica.row;
  const Counter words = philox({at.begin / 4 + threadIdx.x, row.c1, row.c2, row.c3}, replica.key);
  const uint32_t local = threadIdx.x / 16 * 64 + threadIdx.x % 16;
#pragma unroll
  for (uint32_t w = 0; w < 4; w += 2) {
    const uint32_t element = at.begin + local + 16 * w;
    if (element >= at.end) break;
    const uint32_t last = args.channels - 1;
    const uint32_t channels[2] = {element / args.plane, min((element + 16) / args.plane, last)};
    const float2 noise =
        Law::pair(args, replica, guide, channels, element, w ? words.c2 : words.c0, w ? words.c3 : words.c1);
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t here = element + 16 * i, place = local + 16 * (w + i);
      if (here >= at.end) break;
      const float value =
          finish<Law>(args, channels[i], static_cast<float>(replica.image[here]), i ? noise.y : noise.x);
      chunk[args.interleaved ? place * args.steps + step : step * kStepElements + place] = cast<Stored>(value);
    }
  }
}

template <class Stored>
__device__ __forceinline__ void write_chunk(const ReplicaArgs& args, int64_t row, uint32_t chunk, const Stored* values,
                                            bool live) {
  const uint32_t elements = args.channels * args.plane, most = args.steps * static_cast<uint32_t>(kStepElements);
  const uint32_t begin = chunk * most, count = min(elements - begin, most);
  Stored* out = static_cast<Stored*>(args.out) + row * elements;
  if (args.vectorized) {
    const uint4* from = reinterpret_cast<const uint4*>(values);
    uint4* to = reinterpret_cast<uint4*>(out + begin);
#pragma unroll 1  // three times at most
    for (uint32_t i = threadIdx.x; i < count * sizeof(Stored) / kVectorBytes; i += kThreads)
      to[i] = live ? from[i] : make_uint4(0, 0, 0, 0);
    return;
  }
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
    const uint32_t element = begin + i, channel = element / args.plane;
    const bool in_order = args.interleaved || !args.channels_last;
    out[in_order ? element : (element - channel * args.plane) * args.channels + channel] =
        live ? values[i] : cast<Stored>(0.0f);
  }
}

template <class Law, class Stored, class Pixel>
__global__ void __launch_bounds__(kThreads) noisy_replicas_kernel(const ReplicaArgs args) {
  extern __shared__ uint4 shared[];
  const int32_t* guide = args.guide;
  Stored* chunk = reinterpret_cast<Stored*>(shared);
  if (std::is_same_v<Law, LatticeLaw> && args.guide_bytes) {
    int32_t* staged = reinterpret_cast<int32_t*>(chunk + args.steps * kStepElements);
    for (uint32_t i = threadIdx.x; i < args.guide_bytes / sizeof(int32_t); i += kThreads) staged[i] = guide[i];
    guide = staged;
    __syncthreads();
  }
  const Key key = make_key(args.key[0]);
  const uint32_t stream = static_cast<uint32_t>(args.key[1]);
  for (uint32_t unit = blockIdx.x; unit < args.units; unit += gridDim.x) {
    const uint32_t row = unit / args.chunks, part = unit - row * args.chunks;
    const int64_t slot = args.slots[row];
    if (slot >= 0) {
      const Pixel* image = static_cast<const Pixel*>(args.images) + slot * args.channels * args.plane;
      const Replica<Pixel> replica = {image, make_row(args.image_ids[row], args.sample_ids[row], stream), key};
      for (uint32_t step = 0; step < args.steps; ++step)
        draw_step<Law>(args, replica, guide, step_of(args, part, step), step, chunk);
    }
    __syncthreads();
    write_chunk(args, row, part, chunk, slot >= 0);
    __syncthreads();
  }
}

using Kernel = void (*)(ReplicaArgs);

template <class Law, class Pixel>
Kernel kernel_of(Dtype dtype) {
  if (dtype == Dtype::f32) return noisy_replicas_kernel<Law, float, Pixel>;
  if (dtype == Dtype::bf16) return noisy_replicas_kernel<Law, __nv_bfloat16, Pixel>;
  return noisy_replicas_kernel<Law, __half, Pixel>;
}

}  // namespace

void noisy_replicas(const ReplicaArgs& args, const Launch& launch, bool lattice, bool float_images, Dtype dtype,
                    cudaStream_t stream) {
  const Kernel kernel = lattice        ? kernel_of<LatticeLaw, uint8_t>(dtype)
                        : float_images ? kernel_of<GaussianLaw, float>(dtype)
                                       : kernel_of<GaussianLaw, uint8_t>(dtype);
  kernel<<<launch.grid, kThreads, launch.shared, stream>>>(args);
}

}  // namespace smoothfast
