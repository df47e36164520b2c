#include "network.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../../isa.h"
#include "../arena.h"
#include "../loss.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace smoothfast {
namespace fused {
namespace winograd {

struct Kernels {
  void (*run)(const Program&, const char* packed, char* arena, const char* replicas, int count, float* logits,
              const int64_t* labels, float* gradients);
  void (*pack)(const Program&, const std::vector<const float*>& weights, bool backward, char* packed);
};

}  // namespace winograd
}  // namespace fused
}  // namespace smoothfast

#define KERNEL_BODY "fused/winograd/network_kernel.h"
#include "../../each_isa.inc"

#if defined(__x86_64__) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 10)
#define SMOOTHFAST_BF16 1
#if defined(__clang__)
#pragma clang attribute push(                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma,bmi2"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma,bmi2,tune=skylake-avx512,prefer-vector-width=512")
#endif
#define ISA_NAMESPACE avx512_bf16
#define VECTOR_BYTES 64
#define PRODUCTS_OF_BF16
#include "network_kernel.h"
#undef PRODUCTS_OF_BF16
#undef VECTOR_BYTES
#undef ISA_NAMESPACE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace smoothfast {
namespace fused {
namespace winograd {

namespace {

const Kernels& kernels_of(Numbers numbers) {
#if defined(SMOOTHFAST_BF16)
  if (numbers != Numbers::fp32) return avx512_bf16::kernels;
#endif
  return SMOOTHFAST_ACTIVE_KERNELS(active_isa());
}

thread_local Arena arena;

}  // namespace

bool available(Numbers numbers) {
  if (numbers == Numbers::fp32) return true;
#if defined(SMOOTHFAST_BF16)
  __builtin_cpu_init();
  return active_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

void pack(const Shape& shape, Numbers numbers, const std::vector<Parameters>& parameters, const float* linear,
          const float* linear_bias, bool backward, char* packed) {
  const Program& program = program_of(shape, numbers);
  std::vector<std::vector<float>> folded;
  std::vector<const float*> weights;
  for (size_t i = 0; i < parameters.size(); ++i) {
    folded.push_back(folded_weights(program.plan[i], parameters[i]));
    weights.push_back(folded[i].data());
    if (program.places[i].bias < 0) continue;
    auto* bias = reinterpret_cast<float*>(packed + program.places[i].bias);
    for (int64_t o = 0; o < program.plan[i].outputs; ++o) bias[o] = static_cast<float>(parameters[i].bias[o]);
  }
  std::memcpy(packed + program.linear, linear, shape.classes * shape.widths[2] * sizeof(float));
  std::memcpy(packed + program.linear_bias, linear_bias, shape.classes * sizeof(float));
  kernels_of(numbers).pack(program, weights, backward, packed);
}

void run(const Shape& shape, Numbers numbers, const char* packed, const char* replicas, int64_t samples, float* logits,
         const int64_t* labels, float* gradients) {
  const Program& program = program_of(shape, numbers);
  const int64_t bytes = kImageElements * (program.places[0].bf16 ? 2 : 4);
  char* const memory = arena.of(&program, program.arena);
  for (int64_t first = 0; first < samples; first += kSamples[2]) {
    const int count = static_cast<int>(std::min<int64_t>(kSamples[2], samples - first));
    kernels_of(numbers).run(program, packed, memory, replicas + first * bytes, count, logits + first * shape.classes,
                            labels ? labels + first : nullptr, labels ? gradients + first * kImageElements : nullptr);
  }
}

}  // namespace winograd
}  // namespace fused
}  // namespace smoothfast
