#include "perturb_weights.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../ops.h"
#include "isa.h"

#define KERNEL_BODY "perturb_weights_kernel.h"
#include "each_isa.inc"

namespace smoothfast {
namespace {

constexpr int64_t kPassesPerTask = 64;      // enough to pay for the hoisted rounds
constexpr int64_t kWeightsPerTask = 32768;  // about 30 us: less does not pay for a thread

std::vector<TileRun> tile_runs(const int64_t* layers, const int64_t* numbers, int64_t tiles) {
  std::vector<TileRun> runs;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const bool extends = !runs.empty() && runs.back().count < kTilesPerRun && layers[tile] == layers[tile - 1] &&
                         numbers[tile] == numbers[tile - 1] + 1;
    if (extends)
      ++runs.back().count;
    else
      runs.push_back({tile, layers[tile], numbers[tile], 1});
  }
  return runs;
}

std::vector<PassRun> pass_runs(const int64_t* passes, int64_t count) {
  std::vector<PassRun> runs;
  for (int64_t pass = 0; pass < count; ++pass) {
    const bool extends =
        !runs.empty() && pass - runs.back().first < kPassesPerTask && passes[pass] >> 32 == passes[pass - 1] >> 32;
    if (extends)
      ++runs.back().last;
    else
      runs.push_back({pass, pass + 1});
  }
  return runs;
}

at::Tensor perturb_weights_cpu(const at::Tensor& weights, const at::Tensor& scales, const at::Tensor& factors,
                               const at::Tensor& tiles, const at::Tensor& passes, const at::Tensor& key,
                               at::ScalarType dtype) {
  check_perturb_weights(weights, scales, factors, tiles, passes, key, dtype);
  const int64_t count = weights.size(0);
  at::Tensor out = at::empty({passes.size(0), count, kTile}, weights.options().dtype(dtype));
  if (out.numel() == 0) return out;

  const at::Tensor source = weights.contiguous(), deviations = scales.contiguous(), columns = factors.contiguous(),
                   places = tiles.contiguous(), pass_list = passes.contiguous(), key_pair = key.contiguous();
  const int64_t *layers = places.const_data_ptr<int64_t>(), *numbers = layers + count,
                *pass_numbers = pass_list.const_data_ptr<int64_t>(), *seed = key_pair.const_data_ptr<int64_t>();
  check_places(layers, numbers, count, pass_numbers, passes.size(0));
  const Perturbation job = {source.const_data_ptr<float>(),
                            deviations.const_data_ptr<float>(),
                            columns.const_data_ptr<float>(),
                            out.mutable_data_ptr(),
                            pass_numbers,
                            make_key(seed[0]),
                            static_cast<uint32_t>(seed[1]),
                            count,
                            static_cast<int>(factors.size(0))};

  const std::vector<TileRun> by_tile = tile_runs(layers, numbers, count);
  const std::vector<PassRun> by_pass = pass_runs(pass_numbers, passes.size(0));
  const PerturbKernel kernel = SMOOTHFAST_ACTIVE_KERNELS(active_isa()).by_dtype[static_cast<int>(dtype_of(dtype))];
  const int64_t tasks = static_cast<int64_t>(by_tile.size() * by_pass.size());
  const int64_t weights_per_task = out.numel() / tasks;
  at::parallel_for(0, tasks, std::max<int64_t>(1, kWeightsPerTask / weights_per_task), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      kernel(job, by_tile[task / by_pass.size()], by_pass[task % by_pass.size()]);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CPU, m) { m.impl("perturb_weights", perturb_weights_cpu); }

}  // namespace smoothfast
