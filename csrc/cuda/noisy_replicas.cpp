// The ops on CUDA tensors: arguments checked, outputs made, kernels launched on the current stream. Nothing here waits
// for the device, and what changes from call to call of a captured graph is read there.
#include "noisy_replicas.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <limits>

#include "../ops.h"
#include "../random/lattice.h"
#include "../rules/attack.h"
#include "attack_step.h"
#include "perturb_weights.h"
#include "replica_sum.h"
#include "tally.h"

namespace smoothfast {
namespace {

int multiprocessors() { return at::cuda::getCurrentDeviceProperties()->multiProcessorCount; }

void check_device(const char* op, const at::Tensor& first, at::TensorList others) {
  for (const at::Tensor& other : others)
    TORCH_CHECK(other.device() == first.device(), op, ": tensors are on ", first.device(), " and ", other.device(),
                "; all must be on one device");
}

at::Tensor noisy_replicas_cuda(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
                               const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law,
                               at::TensorList table, const at::Tensor& scale, const at::Tensor& shift, bool clip,
                               at::ScalarType dtype, bool channels_last) {
  check_noisy_replicas(images, slots, image_ids, sample_ids, key, law, table, scale, shift, dtype);
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
  noisy_replicas(args, launch.launch, lattice, is_float, output_of(dtype), at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

Logits logits_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return Logits::f64;
    case at::kFloat:
      return Logits::f32;
    case at::kBFloat16:
      return Logits::bf16;
    case at::kHalf:
      return Logits::f16;
    default:
      TORCH_CHECK(false, "tally: logits must be float64, float32, bfloat16 or float16, not ", dtype);
  }
}

void tally_cuda(const at::Tensor& logits, const at::Tensor& slots, at::Tensor& counts, at::Tensor& invalid,
                c10::string_view voting, const std::optional<at::Tensor>& weights) {
  check_tally(logits, slots, counts, invalid, voting, weights);
  const at::Tensor weight = weights ? weights->contiguous() : at::empty({0}, slots.options());
  check_device("tally", logits, {slots, counts, invalid, weight});
  if (logits.size(0) == 0) return;
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor rows = logits.contiguous(), slot = slots.contiguous();
  at::Tensor count = counts.contiguous(), broken = invalid.contiguous();
  const TallyArgs args = {rows.const_data_ptr(),
                          slot.const_data_ptr<int64_t>(),
                          count.mutable_data_ptr<int64_t>(),
                          broken.mutable_data_ptr<int64_t>(),
                          weight.const_data_ptr<int64_t>(),
                          rows.size(0),
                          rows.size(1),
                          weight.size(0)};
  tally(args, tally_launch(args.rows, multiprocessors()), logits_of(rows.scalar_type()), voting_of(voting),
        at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (!count.is_same(counts)) counts.copy_(count);
  if (!broken.is_same(invalid)) invalid.copy_(broken);
}

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
  const at::ScalarType dtype = source.scalar_type();
  replica_sum(args, launch,
              dtype == at::kFloat      ? Gradients::f32
              : dtype == at::kBFloat16 ? Gradients::bf16
                                       : Gradients::f16,
              at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

void attack_step_cuda(at::Tensor& adversarial, const at::Tensor& images, const at::Tensor& gradients,
                      c10::string_view norm, double alpha, double eps, double low, double high) {
  check_attack_step(adversarial, images, gradients, norm, alpha, eps, low, high);
  check_device("attack_step", adversarial, {images, gradients});
  if (adversarial.numel() == 0) return;
  const c10::cuda::CUDAGuard guard(adversarial.device());
  const at::Tensor target = adversarial.contiguous(), source = images.contiguous(), slope = gradients.contiguous();
  const int64_t count = target.size(0), elements = target.numel() / count;
  const bool l2 = norm == "l2";
  const Launch launch = attack_step_launch(count, elements, l2, multiprocessors());
  const AttackArgs args = {target.mutable_data_ptr<float>(),
                           source.const_data_ptr<float>(),
                           slope.const_data_ptr<float>(),
                           launch.units,
                           elements,
                           make_attack(alpha, eps, low, high)};
  attack_step(args, launch, l2, at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (!target.is_same(adversarial)) adversarial.copy_(target);
}

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
  perturb_weights(args, launch, output_of(dtype), at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CUDA, m) {
  m.impl("noisy_replicas", noisy_replicas_cuda);
  m.impl("tally", tally_cuda);
  m.impl("replica_sum", replica_sum_cuda);
  m.impl("attack_step", attack_step_cuda);
  m.impl("perturb_weights", perturb_weights_cuda);
}

}  // namespace smoothfast
