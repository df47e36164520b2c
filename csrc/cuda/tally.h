// The work that the wrapper (tally.cpp) hands to the kernel (tally_kernel.cu). No torch here.
#pragma once

#include <cuda_runtime_api.h>

#include "../rules/votes.h"
#include "launch.h"

namespace smoothfast {

struct TallyArgs {
  const void* logits;  // [rows, classes]
  const int64_t* slots;
  int64_t* counts;         // [S, classes]
  int64_t* invalid;        // [S]
  const int64_t* weights;  // [ranks], null where ranks is 0
  int64_t rows, classes, ranks;
};

void tally(const TallyArgs& args, const Launch& launch, Dtype dtype, Voting voting, cudaStream_t stream);

}  // namespace smoothfast
