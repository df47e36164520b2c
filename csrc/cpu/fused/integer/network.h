// Forward passes of CIFAR ResNets in integers: the same bits on every processor.
#pragma once

#include <cstdint>
#include <vector>

#include "../../../fused/integers.h"
#include "program.h"

namespace smoothfast {
namespace fused {
namespace integer {

// By what products are computed: AMX and VNNI have them as instructions; AVX2 adds them by pairs in 16 bits, and
// without any, C++ does.
enum class Processor { amx, avx512_vnni, avx_vnni, avx2, scalar };

// Whether it is this machine's; asks the system for leave to use AMX.
bool available(Processor processor);

// A network as the kernels read it, the same on all processors, in so many bytes on a line of 64.
int64_t packed_bytes(const Shape& shape);
void pack(const Shape& shape, const std::vector<Numbers>& layers, const int16_t* linear, const int32_t* linear_bias,
          float unit, char* packed);

// Logits [samples, classes] of replicas [samples, 32, 32, 3]. A pure function of each sample.
void run(const Shape& shape, const char* packed, const int16_t* replicas, int64_t samples, float* logits, Processor on);

}  // namespace integer
}  // namespace fused
}  // namespace smoothfast
