#include "perturb_weights.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../ops.h"
#include "device.h"

namespace smoothfast {
namespace {

at::Tensor perturb_weights_cuda(const at::Tensor& weights, const at::Tensor& scales, const at::Tensor& factors,
                                const at::Tensor& tiles, const at::Tensor& passes, const at::Tensor& key,
                                at::ScalarType dtype) {
  check_perturb_weights(weights, scales, factors, tiles, passes, key, dtype);
  check_device("perturb_weights", weights, {scales, factors, tiles, passes, key});
  const c10::cuda::CUDAGuard guard(weights.device());
  at::Tensor out = at::empty({passes.size(0), weights.size(0), kTile}, weights.options().dtype(dtype));
  if (out.numel() == 0) return out;
  const at::Tensor source = weights.contiguous(), deviations = scales.contiguous(), columns = factors.contiguous(),
                   places = tiles.contiguous(), pass_list = passes.contiguous(), key_pair = key.contiguous();
  const Launch launch = perturb_launch(weights.size(0), passes.size(0), multiprocessors());
  TORCH_CHECK(launch.units < int64_t{1} << 31, "perturb_weights: ", weights.size(0), " tiles in ", passes.size(0),
              " passes are too many for one launch");
  const PerturbArgs args = {source.const_data_ptr<float>(),
                            deviations.const_data_ptr<float>(),
                            columns.const_data_ptr<float>(),
                            places.const_data_ptr<int64_t>(),
                            pass_list.const_data_ptr<int64_t>(),
                            key_pair.const_data_ptr<int64_t>(),
                            out.mutable_data_ptr(),
                            weights.size(0),
                            static_cast<uint32_t>(launch.units),
                            static_cast<uint32_t>(passes.size(0)),
                            static_cast<uint32_t>(factors.size(0))};
  perturb_weights(args, launch, dtype_of(dtype), at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CUDA, m) { m.impl("perturb_weights", perturb_weights_cuda); }

}  // namespace smoothfast
