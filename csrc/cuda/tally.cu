// A warp goes through a row of logits.
#include "../votes.h"
#include "tally.h"

namespace smoothfast {
namespace {

template <class Format>
struct Best {  // the largest logit so far, and the first class that has it
  typename Format::Bits value;
  int64_t first;
  bool broken;
};

template <class Format>
__device__ __forceinline__ Best<Format> other_lane(const Best<Format>& mine, int distance) {
  using Bits = typename Format::Bits;
  constexpr uint32_t all = 0xFFFFFFFF;
  if constexpr (sizeof(Bits) < 4)
    return {static_cast<Bits>(__shfl_xor_sync(all, static_cast<int32_t>(mine.value), distance)),
            __shfl_xor_sync(all, mine.first, distance), __shfl_xor_sync(all, mine.broken, distance) != 0};
  else
    return {__shfl_xor_sync(all, mine.value, distance), __shfl_xor_sync(all, mine.first, distance),
            __shfl_xor_sync(all, mine.broken, distance) != 0};
}

template <class Format>
__device__ __forceinline__ Best<Format> better(const Best<Format>& a, const Best<Format>& b) {
  const bool second = b.value > a.value || (b.value == a.value && b.first < a.first);
  return {second ? b.value : a.value, second ? b.first : a.first, a.broken || b.broken};
}

// Integer atomics: the order in which they arrive changes nothing.
__device__ __forceinline__ void add_one(int64_t* count) {
  atomicAdd(reinterpret_cast<unsigned long long*>(count), 1ULL);
}

template <class Format>
__global__ void __launch_bounds__(kThreads) tally_kernel(const TallyArgs args) {
  using Bits = typename Format::Bits;
  const int lane = threadIdx.x % 32;
  for (int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; row < args.rows;
       row += int64_t{gridDim.x} * (kThreads / 32)) {
    const int64_t slot = args.slots[row];
    if (slot < 0) continue;  // of the whole warp
    const Bits* logits = static_cast<const Bits*>(args.logits) + row * args.classes;
    Best<Format> best = {Format::kLeast, args.classes, false};
    for (int64_t c = lane; c < args.classes; c += 32) {
      const Bits bits = logits[c], value = Format::ordered(bits);
      best = {value > best.value ? value : best.value, value > best.value ? c : best.first,
              best.broken || Format::broken(bits)};
    }
    for (int distance = 16; distance > 0; distance /= 2) best = better(best, other_lane(best, distance));
    if (lane == 0) add_one(best.broken ? args.invalid + slot : args.counts + slot * args.classes + best.first);
  }
}

}  // namespace

void tally(const TallyArgs& args, const Launch& launch, Logits dtype, cudaStream_t stream) {
  const auto kernel = dtype == Logits::f64    ? tally_kernel<Float64>
                      : dtype == Logits::f32  ? tally_kernel<Float32>
                      : dtype == Logits::bf16 ? tally_kernel<Bfloat16>
                                              : tally_kernel<Float16>;
  kernel<<<launch.grid, kThreads, launch.shared, stream>>>(args);
}

}  // namespace smoothfast
