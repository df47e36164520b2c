// Forward passes of CIFAR ResNets and gradients by their images in bf16, by products of tiles, with all activations in
// the L2 of a core.
#pragma once

#include <cstdint>
#include <vector>

#include "../../../fused/plan.h"

namespace smoothfast {
namespace fused {
namespace tiles {

enum class Processor { amx, avx512_bf16 };

// What the kernels run on here, the best first; asks the system for leave to use AMX.
const std::vector<Processor>& processors();
const char* processor_name(Processor processor);

// Logits [samples, classes] of replicas, bf16 [samples, 32, 32, 3]; and where labels [samples] are given, gradients
// [samples, 3, 32, 32] of the cross-entropy by the replicas. A pure function of each sample.
void run(const Shape& shape, const char* packed, const uint16_t* replicas, int64_t samples, float* logits,
         const int64_t* labels, float* gradients, Processor on);

// Where the time of gradients goes.
struct Profile {
  struct Layer {
    int weight;
    bool backward;
    int64_t products;  // of tiles, in a micro-batch
    double seconds;    // of a micro-batch
  };
  double product_seconds;  // of one where nothing else is to do, measured in between
  int samples;             // of a micro-batch
  std::vector<Layer> layers;
};

Profile profile(const Shape& shape, const char* packed, Processor on, int repeats);

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
