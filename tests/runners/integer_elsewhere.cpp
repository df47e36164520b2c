// Logits of a small network in integers, in hexadecimal, by the best processor that there is: cross-compiled, and run
// by an emulator, they are the same.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "runners/integer_network.h"

using namespace smoothfast::fused;

int main() {
  constexpr int64_t kSamples = 5;
  const Shape shape = {{16, 32, 48}, 1, 5};
  Random random;
  const std::vector<char> packed = packed_integers(shape, random);
  const auto replicas = random.numbers<int16_t>(kSamples * kImageElements, 500);
  std::vector<float> logits(kSamples * shape.classes);
  auto on = integer::Processor::amx;
  while (!integer::available(on)) on = static_cast<integer::Processor>(static_cast<int>(on) + 1);
  integer::run(shape, packed.data(), replicas.data(), kSamples, logits.data(), on);
  for (float logit : logits) std::printf("%a\n", logit);
}
