// The types of tensors that kernels read and write, as a choice at run time, and the floating ones as integers that
// hold their bits. Host and device.
#pragma once

#include <cstdint>

namespace smoothfast {

// An index of tables of kernels too; these end before those that an op does not take. i16: replicas, on CPUs.
enum class Dtype { f32, bf16, f16, f64, i16 };

template <class Signed, Signed kFullExponent>
struct Format {
  using Bits = Signed;
  static constexpr Bits kInfinity = kFullExponent;
  static constexpr Bits kMagnitude = static_cast<Bits>(~(Bits{1} << (8 * sizeof(Bits) - 1)));
};

using Float64 = Format<int64_t, 0x7FF0000000000000>;
using Float32 = Format<int32_t, 0x7F800000>;
using Bfloat16 = Format<int16_t, 0x7F80>;
using Float16 = Format<int16_t, 0x7C00>;

}  // namespace smoothfast
