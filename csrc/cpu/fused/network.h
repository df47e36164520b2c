// A network by one of several arithmetics: which there are here, how one packs a network, and how it runs.
#pragma once

#include <cstdint>
#include <vector>

#include "../../fused/plan.h"
#include "../../rules/types.h"

namespace smoothfast {
namespace fused {

// Tiles in bf16 are multiplied by AMX, or by AVX512-BF16, which is for tests of the former: Winograd's algorithm takes
// a third of its time there. This one has products of bf16, of float32 in the last stage and of bf16 before, or of
// float32. Those in integers are one function, computed in several ways: see integer/network.h.
enum class Arithmetic {
  amx,
  winograd_bf16,
  winograd_mixed,
  winograd_fp32,
  avx512_bf16,
  int8_amx,
  int8_avx512_vnni,
  int8_avx_vnni,
  int8_avx2,
  int8_scalar
};

// Those that run here.
std::vector<Arithmetic> arithmetics();
const char* arithmetic_name(Arithmetic arithmetic);

// Empty, or why there are no kernels for this shape.
const char* refusal(Arithmetic arithmetic, const Shape& shape);

// Whether a network is one in integers, which `integer::pack` packs, and which has no gradients.
bool in_integers(Arithmetic arithmetic);

// What replicas are: bf16, float32 or int16.
Dtype replicas_of(Arithmetic arithmetic);

// A network as the kernels read it, in so many bytes on a line of 64, with or without what gradients need. Parameters
// are those of the plan; linear [classes, width], linear_bias [classes]. `pack`: of those that are not in integers.
int64_t packed_bytes(Arithmetic arithmetic, const Shape& shape, bool gradients);
void pack(Arithmetic arithmetic, const Shape& shape, const std::vector<Parameters>& parameters, const float* linear,
          const float* linear_bias, bool gradients, char* packed);

// Logits [samples, classes] of replicas [samples, 32, 32, 3]; and where labels [samples] are given, gradients
// [samples, 3, 32, 32] of the cross-entropy by the replicas. A pure function of each sample.
void run(Arithmetic arithmetic, const Shape& shape, const char* packed, const char* replicas, int64_t samples,
         float* logits, const int64_t* labels, float* gradients);

}  // namespace fused
}  // namespace smoothfast
