// The work that the wrapper (tally.cpp) hands to the kernel body (tally_kernel.h). No torch here.
#pragma once

#include <cstdint>

#include "../rules/votes.h"

namespace smoothfast {

// votes[r] = argmax of row r (lowest index on ties), or kInvalidVote where a logit is not finite.
using VoteKernel = void (*)(const void* logits, int64_t rows, int64_t classes, int64_t* votes);

// Some rows, and what they give each class.
struct Block {
  const void* logits;  // [rows, classes]
  int64_t rows, classes;
  const int64_t* weights;  // [ranks]
  int64_t ranks;
  float* terms;     // [rows, classes], for use in between
  int64_t* shares;  // [rows, classes], written; anything where broken
  bool* broken;     // [rows], written: a logit is not finite
};

using ShareKernel = void (*)(const Block& block);

struct FormatKernels {
  VoteKernel vote;
  ShareKernel weighted, soft, logit;
};

struct TallyKernels {
  FormatKernels by_dtype[4];
};

// The same for all instruction sets: sorting gains nothing from wide vectors.
template <class Format>
void weighted_shares(const Block& block);

}  // namespace smoothfast
