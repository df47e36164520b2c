// The work that the wrapper (replica_sum.cpp) hands to the kernel body (replica_sum_kernel.h). No torch here.
#pragma once

#include <cstdint>

#include "../rules/arithmetic.h"
#include "../rules/types.h"

namespace smoothfast {

constexpr int64_t kSumTile = 2048;  // sums of a task: 8 KiB, beside as much of a row in a 32 KiB L1 cache

struct ReplicaSum {
  const void* gradients;  // [R, C, plane] or [R, plane, C]
  const int64_t* rows;    // those of slot s, in order, are rows[first[s]] to rows[first[s + 1] - 1]
  const int64_t* first;
  const float* scale;  // per channel
  float* out;          // [S, C, plane]
  int64_t channels, plane;
  bool channels_last;
};

// Elements [begin, end), at most kSumTile, of a slot, counted as they lie in a row of gradients.
using SumKernel = void (*)(const ReplicaSum&, int64_t slot, int64_t begin, int64_t end);

struct SumKernels {
  SumKernel by_dtype[3];
};

}  // namespace smoothfast
