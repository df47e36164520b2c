#include "noisy_replicas.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../ops.h"
#include "device.h"
#include "noise_tensors.h"

namespace smoothfast {
namespace {

at::Tensor noisy_replicas_cuda(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
                               const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law,
                               at::TensorList table, const at::Tensor& scale, const at::Tensor& shift, bool clip,
                               at::ScalarType dtype, bool channels_last) {
  check_noisy_replicas(images, slots, image_ids, sample_ids, key, law, table, scale, shift, dtype);
  TORCH_CHECK(dtype != at::kShort, "noisy_replicas: dtype int16 is for CPUs; images are on ", images.device());
  check_device("noisy_replicas", images, {slots, image_ids, sample_ids, key, scale, shift});
  check_device("noisy_replicas", images, table);
  const c10::cuda::CUDAGuard guard(images.device());
  const int64_t rows = slots.size(0), channels = images.size(1), plane = images.size(2) * images.size(3);
  TORCH_CHECK(channels * plane < int64_t{1} << 31,
              "noisy_replicas: an image on CUDA may have at most 2^31 - 1 elements");
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  at::Tensor out = at::empty({rows, channels, images.size(2), images.size(3)}, images.options().dtype(dtype), format);
  if (out.numel() == 0) return out;

  const NoiseTensors held(images, slots, image_ids, sample_ids, key, law, table, scale, shift);
  ReplicaArgs args = held.args(clip);
  args.out = out.mutable_data_ptr();
  args.channels_last = channels_last;
  const bool is_float = images.scalar_type() == at::kFloat;

  const bool aligned = reinterpret_cast<uintptr_t>(args.out) % kVectorBytes == 0;
  const int64_t guide_bytes = int64_t{4} * args.sigmas * args.entries;
  const ReplicaLaunch launch =
      replica_launch(rows, channels, plane, out.element_size(), channels_last, aligned, guide_bytes, multiprocessors());
  TORCH_CHECK(launch.launch.units < int64_t{1} << 31, "noisy_replicas: ", rows, " rows are too many for one launch");
  args.units = static_cast<uint32_t>(launch.launch.units);
  args.chunks = launch.chunks;
  args.steps = launch.steps;
  args.guide_bytes = launch.guide;
  args.interleaved = launch.interleaved;
  args.vectorized = launch.vectorized;
  noisy_replicas(args, launch.launch, held.lattice, is_float, dtype_of(dtype), at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CUDA, m) { m.impl("noisy_replicas", noisy_replicas_cuda); }

}  // namespace smoothfast
