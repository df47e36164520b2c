// Float32 to the type that is written, to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <type_traits>

namespace smoothfast {

template <class Stored>
__device__ __forceinline__ Stored cast(float value) {
  if constexpr (std::is_same_v<Stored, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else if constexpr (std::is_same_v<Stored, __half>)
    return __float2half_rn(value);
  else
    return value;
}

}  // namespace smoothfast
