// How a warp votes by a row of logits: for tally, and for fused_votes after its network.
#pragma once

#include "../rules/soft_votes.h"
#include "tally.h"

namespace smoothfast {
namespace {

constexpr uint32_t kWarp = 0xFFFFFFFF;

template <class Format>
struct Best {  // the largest logit so far, and the first class that has it
  typename Format::Bits value;
  int64_t first;
  bool broken;
};

template <class Format>
__device__ __forceinline__ Best<Format> other_lane(const Best<Format>& mine, int distance) {
  using Bits = typename Format::Bits;
  if constexpr (sizeof(Bits) < 4)
    return {static_cast<Bits>(__shfl_xor_sync(kWarp, static_cast<int32_t>(mine.value), distance)),
            __shfl_xor_sync(kWarp, mine.first, distance), __shfl_xor_sync(kWarp, mine.broken, distance) != 0};
  else
    return {__shfl_xor_sync(kWarp, mine.value, distance), __shfl_xor_sync(kWarp, mine.first, distance),
            __shfl_xor_sync(kWarp, mine.broken, distance) != 0};
}

template <class Format>
__device__ __forceinline__ Best<Format> better(const Best<Format>& a, const Best<Format>& b) {
  const bool second = b.value > a.value || (b.value == a.value && b.first < a.first);
  return {second ? b.value : a.value, second ? b.first : a.first, a.broken || b.broken};
}

// Of the classes that are eligible.
template <class Format, class Eligible>
__device__ __forceinline__ Best<Format> best_of(const typename Format::Bits* logits, int64_t classes, int lane,
                                                const Eligible& eligible) {
  using Bits = typename Format::Bits;
  Best<Format> best = {kLeast<Format>, classes, false};
  for (int64_t c = lane; c < classes; c += 32) {
    const Bits bits = logits[c], value = ordered<Format>(bits);
    const bool wins = value > best.value && eligible(value, c);
    best = {wins ? value : best.value, wins ? c : best.first, best.broken || not_finite<Format>(bits)};
  }
  for (int distance = 16; distance > 0; distance /= 2) best = better(best, other_lane(best, distance));
  return best;
}

// Integer atomics: the order in which they arrive changes nothing.
__device__ __forceinline__ void add(int64_t* count, int64_t amount) {
  atomicAdd(reinterpret_cast<unsigned long long*>(count), static_cast<unsigned long long>(amount));
}

// What a lane adds to the counts [classes] of a row's slot, by voting rule; `best` is the row's.
template <class Format>
struct Prediction {
  static __device__ void give(const TallyArgs&, const typename Format::Bits*, int64_t* counts, const Best<Format>& best,
                              int lane) {
    if (lane == 0) add(counts + best.first, 1);
  }
};

template <class Format>
struct Weighted {
  static __device__ void give(const TallyArgs& args, const typename Format::Bits* logits, int64_t* counts,
                              Best<Format> best, int lane) {
    for (int64_t rank = 0;;) {
      if (lane == 0) add(counts + best.first, args.weights[rank]);
      if (++rank == args.ranks) break;
      best = best_of<Format>(logits, args.classes, lane, [&](typename Format::Bits value, int64_t c) {
        return value < best.value || (value == best.value && c > best.first);
      });
    }
  }
};

template <class Format>
struct Soft {
  static __device__ void give(const TallyArgs& args, const typename Format::Bits* logits, int64_t* counts,
                              const Best<Format>& best, int lane) {
    const float largest = number<Format>(ordered<Format>(best.value));
    int64_t total = 0;
    for (int64_t c = lane; c < args.classes; c += 32)
      total += fixed(exponential(number<Format>(logits[c]) - largest) * kTermUnits);
    for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(kWarp, total, distance);
    const double units = units_per_term(total);
    for (int64_t c = lane; c < args.classes; c += 32)
      add(counts + c, fixed(exponential(number<Format>(logits[c]) - largest) * units));
  }
};

template <class Format>
struct Logit {
  static __device__ void give(const TallyArgs& args, const typename Format::Bits* logits, int64_t* counts,
                              const Best<Format>&, int lane) {
    for (int64_t c = lane; c < args.classes; c += 32) add(counts + c, logit_share(number<Format>(logits[c])));
  }
};

// What a warp does with a row of logits.
template <class Format, class Rule>
__device__ __forceinline__ void vote(const TallyArgs& args, int64_t row, int64_t slot, int lane) {
  const auto* logits = static_cast<const typename Format::Bits*>(args.logits) + row * args.classes;
  const Best<Format> best =
      best_of<Format>(logits, args.classes, lane, [](typename Format::Bits, int64_t) { return true; });
  if (!best.broken)
    Rule::give(args, logits, args.counts + slot * args.classes, best, lane);
  else if (lane == 0)
    add(args.invalid + slot, 1);
}

}  // namespace
}  // namespace smoothfast
