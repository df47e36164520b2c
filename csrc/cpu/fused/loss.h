// The loss of which gradients are taken.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace smoothfast {
namespace fused {

// The gradient of the cross-entropy of a class by the logits: softmax minus one, the class as minus the others.
inline void by_logits(const float* logits, int64_t classes, int64_t label, float* gradient) {
  float largest = logits[0], total = 0, others = 0;
  for (int64_t k = 1; k < classes; ++k) largest = std::max(largest, logits[k]);
  for (int64_t k = 0; k < classes; ++k) total += gradient[k] = std::exp(logits[k] - largest);
  for (int64_t k = 0; k < classes; ++k) {
    gradient[k] /= total;
    if (k != label) others += gradient[k];
  }
  gradient[label] = -others;
}

}  // namespace fused
}  // namespace smoothfast
