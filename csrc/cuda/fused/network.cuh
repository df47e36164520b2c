// From images to votes in one kernel: a block takes one or two samples through the whole network, in shared memory. An
// arithmetic is what `Numbers` has, as in integers.cuh.
#pragma once

#include "../votes.cuh"
#include "source.cuh"

namespace smoothfast {
namespace fused {
namespace mma {
namespace {

// The share of a warp in the maps of a stage: a group of outputs, of some rows of one sample; in the first stage of a
// half of these, in several turns. `row` counts through all samples.
template <int SAMPLES, int STAGE, int WIDTH>
struct Share {
  static constexpr int kSize = 32 >> STAGE, kGroups = (WIDTH << STAGE) / kOutputs, kHalves = STAGE == 0 ? 2 : 1;
  static constexpr int kStrips = kWarps / kGroups / kHalves, kRows = STAGE == 0 ? 8 : kSize * SAMPLES / kStrips;
  static constexpr int kTurns = kSize * SAMPLES / kStrips / kRows;
  uint32_t group, x, row;

  __device__ __forceinline__ Share() {
    const uint32_t warp = this_thread() / 32;
    group = warp % kGroups;
    x = warp / kGroups % kHalves * 16;
    row = warp / (kGroups * kHalves) * kRows;
  }

  __device__ __forceinline__ void next_turn() { row += kStrips * kRows; }
};

// A warp on its way through the network.
template <class Numbers, int SAMPLES>
struct Way {
  using Places = mma::Places<Numbers::kNumber, Numbers::kWidth>;
  template <int STAGE>
  using Map = mma::Map<Numbers::kNumber, STAGE, Numbers::kWidth>;
  template <int STAGE>
  using Share = mma::Share<SAMPLES, STAGE, Numbers::kWidth>;

  uint32_t samples;  // in shared memory
  const char* packed;
  uint32_t at;  // bytes, from there to the record of the next layer
  Fragments w;  // of it

  __device__ __forceinline__ uint32_t sample(uint32_t number) const { return samples + number * Places::kSample; }

  template <int STAGE>
  __device__ __forceinline__ void surround_maps(int place) const {
#pragma unroll 1
    for (int s = 0; s < SAMPLES; ++s) surround<Map<STAGE>>(sample(s) + place);
  }

  template <Part PART, int STAGE, bool CHANGES>
  __device__ __forceinline__ void layer() {
    constexpr bool kSecond = PART == Part::second;
    constexpr int kFrom = Places::x(CHANGES ? STAGE - 1 : STAGE), kH = Places::h(STAGE), kX = Places::x(STAGE);
    Share<STAGE> share;
#pragma unroll 1
    for (int turn = 0; turn < Share<STAGE>::kTurns; ++turn, share.next_turn()) {
      const uint32_t base = sample(share.row / share.kSize), y = share.row % share.kSize;
      const Task task = {
          base + (kSecond ? kH : kFrom), base + (kSecond ? kX : kH), base + kFrom, share.group, share.x, y};
      Numbers::template convolve<PART, STAGE, CHANGES, Share<STAGE>::kRows>(task, w, packed + at, Lane());
    }
    at += Numbers::record_bytes(PART, STAGE, CHANGES);
  }

  // Loads weights of the next layer before the barrier that it waits at.
  template <Part PART, int STAGE, bool CHANGES>
  __device__ __forceinline__ void load() {
    Numbers::template load<PART, STAGE, CHANGES>(w, packed + at, Share<STAGE>().group, Lane());
  }

  template <int STAGE>
  __device__ __forceinline__ void load_after_block(bool last) {
    if (!last) return load<Part::first, STAGE, false>();
    if constexpr (STAGE < 2) load<Part::first, STAGE + 1, true>();
  }

  template <int STAGE, bool CHANGES>
  __device__ __forceinline__ void block(bool last) {
    layer<Part::first, STAGE, CHANGES>();
    load<Part::second, STAGE, CHANGES>();
    barrier();
    layer<Part::second, STAGE, CHANGES>();
    load_after_block<STAGE>(last);
    barrier();
  }

  template <int STAGE>
  __device__ __forceinline__ void stage(int blocks) {
    surround_maps<STAGE>(Places::h(STAGE));
    if constexpr (STAGE > 0) {
      surround_maps<STAGE>(Places::x(STAGE));
      block<STAGE, true>(blocks == 1);
    }
#pragma unroll 1
    for (int number = STAGE > 0; number < blocks; ++number) block<STAGE, false>(number + 1 == blocks);
  }

  __device__ __forceinline__ void image() {
    surround_maps<0>(Places::x(0));
    Share<0> share;
#pragma unroll 1
    for (int turn = 0; turn < Share<0>::kTurns; ++turn, share.next_turn()) {
      const uint32_t base = sample(share.row / share.kSize), y = share.row % share.kSize;
      const Task task = {base + Places::kImage, base + Places::x(0), 0, share.group, share.x, y};
      Numbers::template convolve_image<Share<0>::kRows>(task, packed + at, Lane());
    }
    at += Numbers::record_bytes(Part::image, 0, false);
    load<Part::first, 0, false>();
    barrier();
  }

  // Sums of a lane's channels over the pixels of the last map, and logits of the sample of this warp; 0 of padding.
  __device__ __forceinline__ void logits(char* shared, float* to, int64_t classes, bool live) const {
    constexpr uint32_t kParts = kWarps / SAMPLES, kRows = 8 / kParts;
    const Lane l;
    const uint32_t warp = threadIdx.x / 32, part = warp % kParts, pair = 2 * Numbers::kNumber * l.lane;
    const uint32_t map = sample(warp / kParts) + Places::x(2);
    auto* sums = reinterpret_cast<typename Numbers::Pooled*>(shared + Places::h(1));
    typename Numbers::Pooled mine = {};
#pragma unroll
    for (uint32_t i = 0; i < 8 * kRows; ++i)
      Numbers::pool(mine, map + (part * kRows + i / 8 + 1) * Map<2>::kRow + place<Map<2>>(i % 8 + 1, pair / kChunk) +
                              pair % kChunk);
    sums[threadIdx.x] = mine;
    barrier();
    typename Numbers::Pooled all = {};
#pragma unroll
    for (uint32_t p = 0; p < kParts; ++p) {
      const auto more = sums[(warp - part + p) * 32 + l.lane];
      Numbers::add(all, more);
    }
#pragma unroll 1
    for (int64_t k = part; k < classes; k += kParts) {
      const float logit = Numbers::logit(all, packed + at, classes, k, l);
      if (l.lane == 0 && to) to[k] = live ? logit : 0.0f;
    }
    barrier();
  }
};

// A warp votes; what it reads the block has written.
__device__ __forceinline__ void vote_by(Voting voting, const TallyArgs& args, int64_t row, int64_t slot, int lane) {
  switch (voting) {
    case Voting::prediction:
      return vote<Float32, Prediction<Float32>>(args, row, slot, lane);
    case Voting::weighted:
      return vote<Float32, Weighted<Float32>>(args, row, slot, lane);
    case Voting::soft:
      return vote<Float32, Soft<Float32>>(args, row, slot, lane);
    case Voting::logit:
      return vote<Float32, Logit<Float32>>(args, row, slot, lane);
  }
}

// The slot of a row, negative if it is padding. Replicas that are given need none.
__device__ __forceinline__ int64_t slot_of(const VotesArgs& args, int64_t row) {
  if (row >= args.votes.rows) return -1;
  return args.source == Source::given ? 0 : args.votes.slots[row];
}

// Logits 0, of padding.
template <int SAMPLES>
__device__ __forceinline__ void clear_logits(const VotesArgs& args, int64_t first) {
  const int64_t begin = first * args.votes.classes;
  const int64_t end = min(first + SAMPLES, args.votes.rows) * args.votes.classes;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) args.logits[i] = 0.0f;
}

// The images of a unit, from row `first` on. The guide of a law is staged in place of the first map.
template <class Numbers, int SAMPLES>
__device__ __forceinline__ void make_images(const VotesArgs& args, char* shared, uint32_t samples, int64_t first) {
  using Places = mma::Places<Numbers::kNumber, Numbers::kWidth>;
  auto* staged = reinterpret_cast<int32_t*>(shared);
  const ReplicaArgs& replicas = args.replicas;
  for (uint32_t i = threadIdx.x; i < replicas.guide_bytes / sizeof(int32_t); i += kThreads)
    staged[i] = replicas.guide[i];
  for (int s = 0; s < SAMPLES; ++s) clear_image<Numbers>(samples + s * Places::kSample + Places::kImage);
  barrier();
#pragma unroll 1
  for (int s = 0; s < SAMPLES; ++s) {
    const int64_t slot = slot_of(args, first + s);
    const uint32_t image = samples + s * Places::kSample + Places::kImage;
    if (slot >= 0) make_image<Numbers>(args, image, first + s, slot, replicas.guide_bytes ? staged : replicas.guide);
  }
  barrier();
}

// The unit of a block.
template <class Numbers, int SAMPLES>
__device__ __forceinline__ void take_unit(const VotesArgs& args, char* shared) {
  const uint32_t samples = static_cast<uint32_t>(__cvta_generic_to_shared(shared)), warp = threadIdx.x / 32;
  const int64_t first = int64_t{blockIdx.x} * SAMPLES;
  bool live = false;
  for (int s = 0; s < SAMPLES; ++s) live |= slot_of(args, first + s) >= 0;
  if (!live) return clear_logits<SAMPLES>(args, first);
  make_images<Numbers, SAMPLES>(args, shared, samples, first);
  Way<Numbers, SAMPLES> way = {samples, args.packed, 0, {}};
  way.image();
  way.template stage<0>(args.blocks);
  way.template stage<1>(args.blocks);
  way.template stage<2>(args.blocks);
  const int64_t mine = first + warp / (kWarps / SAMPLES);
  float* to = mine < args.votes.rows ? args.logits + mine * args.votes.classes : nullptr;
  way.logits(shared, to, args.votes.classes, slot_of(args, mine) >= 0);
  const int64_t row = first + warp, slot = warp < SAMPLES && args.votes.counts ? slot_of(args, row) : -1;
  if (slot >= 0) vote_by(args.voting, args.votes, row, slot, Lane().lane);
}

// More shared memory than every device has must be asked for. Of a build for older generations the kernel is empty,
// also where a device of a later one compiles it anew.
inline cudaError_t launch_votes(void (*kernel)(VotesArgs), const VotesArgs& args, const Launch& launch,
                                cudaStream_t stream) {
  cudaFuncAttributes compiled;
  cudaError_t status = cudaFuncGetAttributes(&compiled, kernel);
  if (status == cudaSuccess && compiled.ptxVersion < 80) status = cudaErrorNoKernelImageForDevice;
  if (status == cudaSuccess && launch.shared > kSharedBytes)
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared);
  if (status != cudaSuccess) return status;
  kernel<<<launch.grid, kThreads, launch.shared, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace
}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
