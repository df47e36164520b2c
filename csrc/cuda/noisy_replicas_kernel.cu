// A block draws a chunk of a row, one Philox block and thus four elements of a tile (docs/noise.md) a thread and step,
// puts it together in shared memory and writes it 16 bytes a thread.
#include "cast.h"
#include "noise.cuh"

namespace smoothfast {
namespace {

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
