// The ops of fused networks on CUDA.
#include "votes.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>

#include "../../fused/mma/bf16.h"
#include "../../fused/mma/integers.h"
#include "../../ops.h"
#include "../device.h"
#include "../noise_tensors.h"

namespace smoothfast {
namespace {

using namespace fused;

const mma::Arithmetic& arithmetic_of(c10::string_view name) {
  const mma::Arithmetic* found = mma::arithmetic_of(name);
  TORCH_CHECK(found, "fused: arithmetic is '", name, "', which GPUs have not");
  return *found;
}

at::ScalarType type_of(const mma::Arithmetic& by) { return by.integers ? at::kShort : at::kBFloat16; }

int64_t packed_bytes(const mma::Arithmetic& by, const Shape& network) {
  return by.integers ? mma::integers::packed_bytes(network) : mma::bf16::packed_bytes(network);
}

void check_cifar(const char* op, const char* name, const at::Tensor& images) {
  TORCH_CHECK(images.dim() == 4 && images.size(1) == 3 && images.size(2) == 32 && images.size(3) == 32, op, ": ", name,
              " must be [R, 3, 32, 32], not ", images.sizes());
}

Shape checked_network(const char* op, const at::Tensor& packed, at::IntArrayRef shape, const mma::Arithmetic& by) {
  TORCH_CHECK(shape.size() == 5, op, ": shape must be three widths, blocks and classes, not ", shape);
  const Shape network = {{shape[0], shape[1], shape[2]}, shape[3], shape[4]};
  const char* refused = mma::refusal(network, by.integers);
  TORCH_CHECK(!*refused, op, ": ", refused, "; shape is ", shape);
  TORCH_CHECK(by.samples == 1 || !mma::is_wide(network), op, ": arithmetic is '", by.name,
              "', which takes widths of 16, 32, 64; shape is ", shape);
  const bool aligned = reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % mma::kChunk == 0;
  TORCH_CHECK(packed.dim() == 1 && packed.scalar_type() == at::kByte && packed.is_contiguous() && aligned &&
                  packed.numel() == packed_bytes(by, network),
              op, ": packed must come from fused_pack", by.integers ? "_integers" : "", ", for shape ", shape, " and ",
              by.name);
  return network;
}

// That the current device has what the kernels are made for.
void check_generation(const mma::Arithmetic& by, const Launch& launch) {
  const cudaDeviceProp* device = at::cuda::getCurrentDeviceProperties();
  TORCH_CHECK(device->major >= 8, "fused: arithmetic is '", by.name,
              "', for GPUs of compute capability 8.0 and later; ", device->name, " has ", device->major, ".",
              device->minor);
  TORCH_CHECK(static_cast<size_t>(launch.shared) <= device->sharedMemPerBlockOptin, "fused: arithmetic is '", by.name,
              "', whose blocks take ", launch.shared, " bytes of shared memory; ", device->name, " has ",
              device->sharedMemPerBlockOptin);
}

at::Tensor logits_of(int64_t rows, const Shape& network, const at::Tensor& packed) {
  return at::empty({rows, network.classes}, packed.options().dtype(at::kFloat));
}

// Writes logits; the votes are added where there are counts.
void run(mma::VotesArgs& args, const at::Tensor& packed, const Shape& network, const mma::Arithmetic& by,
         at::Tensor& logits) {
  const int64_t rows = logits.size(0);
  if (rows == 0) return;
  TORCH_CHECK(rows < int64_t{1} << 31, "fused: ", rows, " rows are too many for one launch");
  const int64_t guide_bytes = int64_t{4} * args.replicas.sigmas * args.replicas.entries;
  const mma::VotesLaunch launch = mma::votes_launch(by, mma::is_wide(network), rows, guide_bytes);
  check_generation(by, launch.launch);
  args.logits = logits.mutable_data_ptr<float>();
  args.votes.logits = args.logits;
  args.votes.rows = rows;
  args.votes.classes = network.classes;
  args.packed = reinterpret_cast<const char*>(packed.const_data_ptr<uint8_t>());
  args.blocks = static_cast<int32_t>(network.blocks);
  args.replicas.guide_bytes = launch.guide;
  const auto stream = at::cuda::getCurrentCUDAStream();
  const auto votes = by.integers ? mma::integer_votes : mma::bf16_votes;
  C10_CUDA_CHECK(mma::is_wide(network) ? mma::bf16_wide_votes(args, launch.launch, stream)
                                       : votes(args, by.samples, launch.launch, stream));
}

at::Tensor fused_logits_cuda(const at::Tensor& replicas, const at::Tensor& packed, at::IntArrayRef shape,
                             c10::string_view arithmetic) {
  constexpr const char* op = "fused_logits";
  const mma::Arithmetic& by = arithmetic_of(arithmetic);
  check_cifar(op, "replicas", replicas);
  TORCH_CHECK(replicas.scalar_type() == type_of(by), op, ": replicas must be ", type_of(by), " [R, 3, 32, 32], not ",
              replicas.scalar_type(), " ", replicas.sizes());
  check_device(op, replicas, {packed});
  const Shape network = checked_network(op, packed, shape, by);
  const c10::cuda::CUDAGuard guard(replicas.device());
  const at::Tensor given = replicas.contiguous();
  mma::VotesArgs args = {};
  args.replicas.images = given.const_data_ptr();
  args.source = mma::Source::given;
  at::Tensor logits = logits_of(given.size(0), network, packed);
  run(args, packed, network, by, logits);
  return logits;
}

at::Tensor fused_votes_cuda(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
                            const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law,
                            at::TensorList table, const at::Tensor& scale, const at::Tensor& shift, bool clip,
                            const at::Tensor& packed, at::IntArrayRef shape, c10::string_view arithmetic,
                            at::Tensor& counts, at::Tensor& invalid, c10::string_view voting,
                            const std::optional<at::Tensor>& weights) {
  constexpr const char* op = "fused_votes";
  const mma::Arithmetic& by = arithmetic_of(arithmetic);
  check_cifar(op, "images", images);
  check_noisy_replicas(images, slots, image_ids, sample_ids, key, law, table, scale, shift, type_of(by));
  const Shape network = checked_network(op, packed, shape, by);
  const c10::cuda::CUDAGuard guard(images.device());
  at::Tensor logits = logits_of(slots.size(0), network, packed);
  check_tally(logits, slots, counts, invalid, voting, weights);
  const at::Tensor weight = weights ? weights->contiguous() : at::empty({0}, slots.options());
  check_device(op, images, {slots, image_ids, sample_ids, key, scale, shift, packed, counts, invalid, weight});
  check_device(op, images, table);
  const NoiseTensors held(images, slots, image_ids, sample_ids, key, law, table, scale, shift);
  at::Tensor count = counts.contiguous(), broken = invalid.contiguous();
  mma::VotesArgs args = {};
  args.replicas = held.args(clip);
  args.votes.slots = args.replicas.slots;
  args.votes.counts = count.mutable_data_ptr<int64_t>();
  args.votes.invalid = broken.mutable_data_ptr<int64_t>();
  args.votes.weights = weight.const_data_ptr<int64_t>();
  args.votes.ranks = weight.size(0);
  args.voting = voting_of(voting);
  args.source = held.lattice                         ? mma::Source::lattice
                : images.scalar_type() == at::kFloat ? mma::Source::gaussian_of_floats
                                                     : mma::Source::gaussian;
  run(args, packed, network, by, logits);
  if (!count.is_same(counts)) counts.copy_(count);
  if (!broken.is_same(invalid)) invalid.copy_(broken);
  return logits;
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CUDA, m) {
  m.impl("fused_logits", fused_logits_cuda);
  m.impl("fused_votes", fused_votes_cuda);
}

}  // namespace smoothfast
