// The work that the wrapper (votes.cpp) hands to the kernels (*_kernel.cu), which take a network from images to votes.
// No torch here.
#pragma once

#include <cuda_runtime_api.h>

#include "../noisy_replicas.h"
#include "../tally.h"
#include "launch.h"

namespace smoothfast {
namespace fused {
namespace mma {

// What the numbers of an image are made of: replicas as they are, or pixels, bytes or floats, and noise by a law.
enum class Source { given, lattice, gaussian, gaussian_of_floats };

struct VotesArgs {
  ReplicaArgs replicas;  // of CIFAR images; where replicas are given they are these, [R, 3, 32, 32]
  TallyArgs votes;       // of the logits below; no counts where nobody votes
  float* logits;         // [R, classes]
  const char* packed;
  int32_t blocks;  // of a stage
  Source source;
  Voting voting;  // where there are counts
};

// Launch the kernel of an arithmetic. They may be captured into a graph.
cudaError_t bf16_votes(const VotesArgs& args, int samples, const Launch& launch, cudaStream_t stream);
cudaError_t bf16_wide_votes(const VotesArgs& args, const Launch& launch, cudaStream_t stream);  // 32, 64, 128
cudaError_t integer_votes(const VotesArgs& args, int samples, const Launch& launch, cudaStream_t stream);

}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
