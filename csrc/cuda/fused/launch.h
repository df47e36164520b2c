// How the kernels of csrc/cuda/fused are launched; as ../launch.h.
#pragma once

#include "../../fused/mma/map.h"
#include "../launch.h"

namespace smoothfast {
namespace fused {
namespace mma {

// A block takes so many samples at a time: one, and then two blocks share a multiprocessor; or two.
inline Launch votes_launch(int64_t rows, int samples, int64_t bytes_of_sample, int multiprocessors) {
  const int64_t units = (rows + samples - 1) / samples, most = int64_t{samples == 1 ? 2 : 1} * multiprocessors;
  return {units, static_cast<int32_t>(std::min(units, most)), static_cast<int32_t>(samples * bytes_of_sample)};
}

}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
