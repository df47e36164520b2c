// How the kernels of csrc/cuda/fused are launched; as ../launch.h.
#pragma once

#include "../../fused/mma/arithmetics.h"
#include "../../fused/mma/map.h"
#include "../launch.h"

namespace smoothfast {
namespace fused {
namespace mma {

struct VotesLaunch {
  Launch launch;  // a block for each unit, of the samples that it takes at a time
  int32_t guide;  // bytes of the guide of the lattice law, staged in place of the first map; 0: it is read where it is
};

template <class Places>
VotesLaunch votes_launch(int samples, int64_t rows, int64_t guide_bytes) {
  const int64_t units = (rows + samples - 1) / samples;
  return {{units, static_cast<int32_t>(units), samples * Places::kSample},
          static_cast<int32_t>(guide_bytes <= Places::kRegion ? guide_bytes : 0)};
}

// Rows are at most 2^31 - 1.
inline VotesLaunch votes_launch(const Arithmetic& arithmetic, bool wide, int64_t rows, int64_t guide_bytes) {
  if (arithmetic.integers) return votes_launch<Places<1>>(arithmetic.samples, rows, guide_bytes);
  return wide ? votes_launch<Places<2, 2 * kWidth>>(arithmetic.samples, rows, guide_bytes)
              : votes_launch<Places<2>>(arithmetic.samples, rows, guide_bytes);
}

}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
