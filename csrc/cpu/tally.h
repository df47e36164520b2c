// What the wrapper (tally.cpp) hands to the kernel body (tally_kernel.h). No torch here.
#pragma once

#include <cstdint>

#include "../votes.h"

namespace smoothfast {

// votes[r] = argmax of row r (lowest index on ties), or kInvalidVote where a logit is not finite.
using VoteKernel = void (*)(const void* logits, int64_t rows, int64_t classes, int64_t* votes);

struct TallyKernels {
  VoteKernel f64, f32, bf16, f16;
};

}  // namespace smoothfast
