#include "noisy_replicas.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>
#include <vector>

#include "../ops.h"
#include "../random/lattice.h"
#include "device.h"

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

  const at::Tensor source = images.contiguous(), slot = slots.contiguous(), image_id = image_ids.contiguous(),
                   sample_id = sample_ids.contiguous(), key_pair = key.contiguous(), a = scale.contiguous(),
                   b = shift.contiguous();
  std::vector<at::Tensor> constants;
  for (const at::Tensor& part : table) constants.push_back(part.contiguous());
  const bool lattice = law == "lattice", is_float = images.scalar_type() == at::kFloat;

  ReplicaArgs args = {};
  args.images = source.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.slots = slot.const_data_ptr<int64_t>();
  args.image_ids = image_id.const_data_ptr<int64_t>();
  args.sample_ids = sample_id.const_data_ptr<int64_t>();
  args.key = key_pair.const_data_ptr<int64_t>();
  args.scale = a.const_data_ptr<float>();
  args.shift = b.const_data_ptr<float>();
  args.sigmas = static_cast<int32_t>(constants[0].size(0));
  if (lattice) {
    args.high = constants[0].const_data_ptr<int64_t>();
    args.low = constants[1].const_data_ptr<int64_t>();
    args.guide = constants[2].const_data_ptr<int32_t>();
    args.reach = static_cast<int32_t>(constants[0].size(1) / 2);
    args.entries = static_cast<int32_t>(constants[2].size(1));
    args.guide_shift = guide_shift(args.entries);
  } else {
    args.sigma = constants[0].const_data_ptr<float>();
  }
  const float infinity = std::numeric_limits<float>::infinity();
  args.least = clip ? 0.0f : -infinity;
  args.most = clip ? (is_float ? 1.0f : 255.0f) : infinity;
  args.channels = static_cast<uint32_t>(channels);
  args.plane = static_cast<uint32_t>(plane);
  args.channels_last = channels_last;

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
  noisy_replicas(args, launch.launch, lattice, is_float, dtype_of(dtype), at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CUDA, m) { m.impl("noisy_replicas", noisy_replicas_cuda); }

}  // namespace smoothfast
