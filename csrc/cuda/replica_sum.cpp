#include "replica_sum.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../ops.h"
#include "device.h"

namespace smoothfast {
namespace {

at::Tensor replica_sum_cuda(const at::Tensor& gradients, const at::Tensor& slots, const at::Tensor& scale,
                            int64_t images) {
  check_replica_sum(gradients, slots, scale, images);
  check_device("replica_sum", gradients, {slots, scale});
  const c10::cuda::CUDAGuard guard(gradients.device());
  const int64_t channels = gradients.size(1), plane = gradients.size(2) * gradients.size(3);
  TORCH_CHECK(channels * plane < int64_t{1} << 31, "replica_sum: an image on CUDA may have at most 2^31 - 1 elements");
  const auto options = gradients.options().dtype(at::kFloat);
  at::Tensor out = at::empty({images, channels, gradients.size(2), gradients.size(3)}, options);
  if (out.numel() == 0) return out;

  const bool channels_last = !gradients.is_contiguous() && gradients.is_contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor source = channels_last ? gradients : gradients.contiguous(), a = scale.contiguous();
  const auto [by_slot, rows] = slots.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor first = at::searchsorted(by_slot, at::arange(images + 1, slots.options()));

  const bool aligned = reinterpret_cast<uintptr_t>(source.const_data_ptr()) % kVectorBytes == 0;
  const SumLaunch launch =
      replica_sum_launch(images, channels * plane, source.element_size(), aligned, multiprocessors());
  TORCH_CHECK(launch.launch.units < int64_t{1} << 31, "replica_sum: ", images, " images are too many for one launch");
  const SumArgs args = {source.const_data_ptr(),
                        rows.const_data_ptr<int64_t>(),
                        first.const_data_ptr<int64_t>(),
                        a.const_data_ptr<float>(),
                        out.mutable_data_ptr<float>(),
                        static_cast<uint32_t>(launch.launch.units),
                        static_cast<uint32_t>(channels * plane / launch.width),
                        static_cast<uint32_t>(channels),
                        static_cast<uint32_t>(plane),
                        channels_last};
  replica_sum(args, launch, dtype_of(source.scalar_type()), at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CUDA, m) { m.impl("replica_sum", replica_sum_cuda); }

}  // namespace smoothfast
