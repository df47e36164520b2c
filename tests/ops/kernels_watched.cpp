// The kernel bodies without torch, by scalar and AVX2 code, on memory of exactly the size that they must have, for
// memcheck to watch: it sees what is read before it was written too. Of lattice noise, which takes tables, there is
// none. tests/ops/test_instruments.py compiles it once for each op, whose number is OP, and runs it.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/attack_step.h"
#include "cpu/noisy_replicas.h"
#include "cpu/perturb_weights.h"
#include "cpu/replica_sum.h"
#include "cpu/tally.h"
#include "rules/soft_votes.h"

#if OP == 0
#define KERNEL_BODY "cpu/noisy_replicas_kernel.h"
#elif OP == 1
#define KERNEL_BODY "cpu/tally_kernel.h"
#elif OP == 2
#define KERNEL_BODY "cpu/replica_sum_kernel.h"
#elif OP == 3
#define KERNEL_BODY "cpu/attack_step_kernel.h"
#else
#define KERNEL_BODY "cpu/perturb_weights_kernel.h"
#endif

namespace smoothfast {
template <class Format>
void weighted_shares(const Block&) {}  // is no kernel: it sorts
}  // namespace smoothfast

#include "cpu/each_isa.inc"

using namespace smoothfast;

namespace {

int64_t sum = 0;  // of all bytes written: it depends on each of them

template <class T>
void look_at(const std::vector<T>& written) {
  for (size_t i = 0; i < written.size() * sizeof(T); ++i) {
    const char byte = reinterpret_cast<const char*>(written.data())[i];
    if (byte & 1) ++sum;
  }
}

std::vector<float> numbers(int64_t count) {
  std::vector<float> made(count);
  for (int64_t i = 0; i < count; ++i) made[i] = static_cast<float>((i * 7919 + 13) % 1000) / 999 - 0.4f;
  return made;
}

// Memory that nothing has written to: a vector would clear it.
template <class T>
struct Raw {
  explicit Raw(int64_t count) : count(count), data(static_cast<T*>(::operator new(count * sizeof(T)))) {}
  ~Raw() { ::operator delete(data); }
  Raw(const Raw&) = delete;
  void look() const { look_at(std::vector<T>(data, data + count)); }
  int64_t count;
  T* data;
};

template <class Kernels>
void run(const Kernels& kernels) {
#if OP == 0
  const int64_t ids[] = {7, 7, 7}, samples[] = {(int64_t{1} << 40) - 3, (int64_t{1} << 40) - 2, (int64_t{1} << 40) - 1};
  for (const int64_t channels : {1, 3, 4})
    for (const int64_t plane : {1, 35, 64, 1025})
      for (const int dtype : {0, 1, 2})
        for (const bool channels_last : {false, true}) {
          const std::vector<float> images = numbers(channels * plane), constants = numbers(channels);
          Raw<char> out(3 * channels * plane * (dtype == 0 ? 4 : 2));
          const Replicas job = {images.data(),
                                out.data,
                                ids,
                                samples,
                                make_key(5),
                                1,
                                channels,
                                plane,
                                channels_last,
                                nullptr,
                                constants.data(),
                                constants.data(),
                                constants.data(),
                                0,
                                1};
          const int group = channels_last && channels == kMaxGroup ? kMaxGroup : 1;
          const int64_t pixels = group == 1 ? kTilePixels : kInterleavedPixels;
          for (int64_t channel = 0; channel < channels; channel += group)
            for (int64_t begin = 0; begin < plane; begin += pixels)
              kernels.gaussian[1][dtype](job, {0, 3, 0}, {channel, begin, std::min(begin + pixels, plane), group});
          out.look();
        }
#elif OP == 1
  for (const int64_t classes : {1, 2, 10, 33, 1000})
    for (const int64_t rows : {1, 13}) {
      std::vector<float> logits = numbers(rows * classes);
      logits[logits.size() / 2] = std::numeric_limits<float>::quiet_NaN();
      Raw<int64_t> votes(rows), shares(rows * classes);
      Raw<float> terms(rows * classes);
      Raw<bool> broken(rows);
      const Block block = {logits.data(), rows, classes, nullptr, 0, terms.data, shares.data, broken.data};
      kernels.by_dtype[0].vote(logits.data(), rows, classes, votes.data);
      votes.look();
      for (const ShareKernel kernel : {kernels.by_dtype[0].soft, kernels.by_dtype[0].logit}) {
        kernel(block);
        shares.look();
      }
    }
#elif OP == 2
  const std::vector<int64_t> rows = {0, 2, 3, 4, 5, 6, 1}, first = {0, 6, 6, 7};
  for (const int64_t channels : {1, 3, 5})
    for (const int64_t plane : {1, 35, 987})
      for (const bool channels_last : {false, true}) {
        const std::vector<float> gradients = numbers(7 * channels * plane), scale = numbers(channels);
        Raw<float> out(3 * channels * plane);
        const ReplicaSum job = {gradients.data(), rows.data(), first.data(), scale.data(),
                                out.data,         channels,    plane,        channels_last};
        for (const int64_t slot : {0, 1, 2})
          for (int64_t begin = 0; begin < channels * plane; begin += kSumTile)
            kernels.by_dtype[0](job, slot, begin, std::min(begin + kSumTile, channels * plane));
        out.look();
      }
#elif OP == 3
  for (const int64_t elements : {1, 35, 256, 257, 3072}) {
    const std::vector<float> images = numbers(3 * elements), gradients = numbers(3 * elements);
    std::vector<float> adversarial = images;
    const AttackStep job = {adversarial.data(), images.data(), gradients.data(), elements, make_attack(0.1, 0.3, 0, 1)};
    kernels.linf(job, 0, 3 * elements);
    kernels.l2(job, 0, 3);
    look_at(adversarial);
  }
#else
  const int64_t passes[] = {3, 4, (int64_t{1} << 32) - 1};
  for (const int rank : {0, 1, 33, 64})
    for (const int dtype : {0, 1, 2}) {
      const int64_t tiles = 17;
      const std::vector<float> weights = numbers(tiles * kTile), factors = numbers(rank * tiles * kTile);
      Raw<char> out(3 * tiles * kTile * (dtype == 0 ? 4 : 2));
      const Perturbation job = {
          weights.data(), weights.data(), factors.data(), out.data, passes, make_key(5), 1, tiles, rank};
      kernels.by_dtype[dtype](job, {0, 9, 0, 16}, {0, 3});
      kernels.by_dtype[dtype](job, {16, 0xFFFFFFFF, (1 << 28) - 1, 1}, {0, 3});
      out.look();
    }
#endif
}

}  // namespace

int main() {
  run(scalar::kernels);
#if defined(__x86_64__)
  const int64_t found = sum;
  sum = 0;
  run(avx2::kernels);
  if (sum != found) return 1;
#endif
  std::puts("clean");
}
