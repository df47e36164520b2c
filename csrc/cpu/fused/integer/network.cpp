#include "network.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../../isa.h"
#include "../amx.h"
#include "../arena.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace smoothfast {
namespace fused {
namespace integer {

struct Kernels {
  int lanes;  // samples that go through the network together
  void (*run)(const Program&, const char* packed, char* arena, const int16_t* replicas, int count, float* logits);
};

}  // namespace integer
}  // namespace fused
}  // namespace smoothfast

#define ISA_NAMESPACE scalar
#define VECTOR_BYTES 16
#include "network_kernel.h"
#undef VECTOR_BYTES
#undef ISA_NAMESPACE

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2,tune=haswell")
#endif
#define ISA_NAMESPACE avx2
#define VECTOR_BYTES 32
#include "network_kernel.h"
#undef ISA_NAMESPACE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define VNNI  // products of four bytes, added to sums, are an instruction
#if defined(__clang__) || __GNUC__ >= 11
#define SMOOTHFAST_AVX_VNNI 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avxvnni,avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avxvnni,avx2,fma,bmi2,tune=haswell")
#endif
#define ISA_NAMESPACE avx_vnni
#include "network_kernel.h"
#undef ISA_NAMESPACE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#undef VECTOR_BYTES

#if defined(__clang__)
#pragma clang attribute push(                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx2,fma,bmi2"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx2,fma,bmi2,tune=skylake-avx512,prefer-vector-width=512")
#endif
#define ISA_NAMESPACE avx512_vnni
#define VECTOR_BYTES 64
#if defined(SMOOTHFAST_AMX)
#define TILES
#endif
#include "network_kernel.h"
#undef TILES
#undef VECTOR_BYTES
#undef ISA_NAMESPACE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef VNNI

#endif

namespace smoothfast {
namespace fused {
namespace integer {

namespace {

const Kernels& kernels_of(Processor on) {
#if defined(__x86_64__)
#if defined(SMOOTHFAST_AMX)
  if (on == Processor::amx) return avx512_vnni::of_tiles;
#endif
  if (on == Processor::avx512_vnni) return avx512_vnni::kernels;
#if defined(SMOOTHFAST_AVX_VNNI)
  if (on == Processor::avx_vnni) return avx_vnni::kernels;
#endif
  if (on == Processor::avx2) return avx2::kernels;
#endif
  return scalar::kernels;
}

thread_local Arena arena;

#if defined(SMOOTHFAST_AVX_VNNI)
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}
#endif

}  // namespace

bool available(Processor processor) {
  if (processor == Processor::scalar) return true;
#if defined(__x86_64__)
  if (processor == Processor::avx2) return isa_supported(Isa::avx2);
#if defined(SMOOTHFAST_AVX_VNNI)
  if (processor == Processor::avx_vnni) return isa_supported(Isa::avx2) && has_avx_vnni();
#endif
  __builtin_cpu_init();
  const bool vnni = isa_supported(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
  if (processor == Processor::avx512_vnni) return vnni;
#if defined(SMOOTHFAST_AMX)
  if (processor == Processor::amx) return vnni && amx_permitted(kAmxInt8);
#endif
#endif
  return false;
}

void run(const Shape& shape, const char* packed, const int16_t* replicas, int64_t samples, float* logits,
         Processor on) {
  const Kernels& kernels = kernels_of(on);
  const Program& program = program_of(shape, kernels.lanes);
  char* const memory = arena.of(&program, program.arena);
  for (int64_t first = 0; first < samples; first += kernels.lanes) {
    const int count = static_cast<int>(std::min<int64_t>(kernels.lanes, samples - first));
    kernels.run(program, packed, memory, replicas + first * kImageElements, count, logits + first * shape.classes);
  }
}

}  // namespace integer
}  // namespace fused
}  // namespace smoothfast
