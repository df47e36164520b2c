// What the torch side (ops.cpp) hands to tally.cu. No torch here.
#pragma once

#include <cuda_runtime_api.h>

#include "../rules/votes.h"
#include "launch.h"

namespace smoothfast {

enum class Logits { f64, f32, bf16, f16 };

struct TallyArgs {
  const void* logits;  // [rows, classes]
  const int64_t* slots;
  int64_t* counts;         // [S, classes]
  int64_t* invalid;        // [S]
  const int64_t* weights;  // [ranks], null where ranks is 0
  int64_t rows, classes, ranks;
};

void tally(const TallyArgs& args, const Launch& launch, Logits dtype, Voting voting, cudaStream_t stream);

}  // namespace smoothfast
