// How the kernels of csrc/cuda/fused are launched; as ../launch.h.
#pragma once

#include "../../fused/mma/arithmetics.h"
#include "../../fused/mma/map.h"
#include "../launch.h"

namespace smoothfast {
namespace fused {
namespace mma {

struct VotesLaunch {
  Launch launch;  // units: samples that a block takes at a time
  int32_t guide;  // bytes of the guide of the lattice law, staged in place of the first map; 0: it is read where it is
};

// Two blocks of one sample at a time share a multiprocessor; of two samples a block has one to itself.
template <class Places>
VotesLaunch votes_launch(const Arithmetic& arithmetic, int64_t rows, int64_t guide_bytes, int multiprocessors) {
  const int64_t units = (rows + arithmetic.samples - 1) / arithmetic.samples;
  const int64_t most = int64_t{arithmetic.samples == 1 ? 2 : 1} * multiprocessors;
  const Launch launch = {units, static_cast<int32_t>(std::min(units, most)), arithmetic.samples * Places::kSample};
  return {launch, static_cast<int32_t>(guide_bytes <= Places::kRegion ? guide_bytes : 0)};
}

inline VotesLaunch votes_launch(const Arithmetic& arithmetic, int64_t rows, int64_t guide_bytes, int multiprocessors) {
  return arithmetic.integers ? votes_launch<Places<1>>(arithmetic, rows, guide_bytes, multiprocessors)
                             : votes_launch<Places<2>>(arithmetic, rows, guide_bytes, multiprocessors);
}

}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
