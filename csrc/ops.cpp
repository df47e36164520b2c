// All schemas, and what their arguments must be. The Python twin of this page is smoothfast/ops.
#include "ops.h"

#include <ATen/MemoryOverlap.h>
#include <torch/library.h>

#include <cmath>

#include "random/philox.h"

namespace smoothfast {

TORCH_LIBRARY(smoothfast, m) {
  m.def(
      "noisy_replicas(Tensor images, Tensor slots, Tensor image_ids, Tensor sample_ids, Tensor key, str law, "
      "Tensor[] table, Tensor scale, Tensor shift, bool clip, ScalarType dtype, bool channels_last) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "tally(Tensor logits, Tensor slots, Tensor(a2!) counts, Tensor(a3!) invalid, str voting=\"prediction\", "
      "Tensor? weights=None) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def("replica_sum(Tensor gradients, Tensor slots, Tensor scale, SymInt images) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "attack_step(Tensor(a0!) adversarial, Tensor images, Tensor gradients, str norm, float alpha, float eps, "
      "float low, float high) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "perturb_weights(Tensor weights, Tensor scales, Tensor factors, Tensor tiles, Tensor passes, Tensor key, "
      "ScalarType dtype) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  // Packed on CPUs, for all devices; gradients are for CPUs alone. Arguments are checked in cpu/fused and cuda/fused.
  m.def(
      "fused_pack(Tensor[] weights, Tensor[] gains, Tensor[] biases, Tensor linear, Tensor linear_bias, "
      "str arithmetic, bool gradients) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "fused_pack_integers(Tensor[] weights, Tensor[] scales, Tensor[] biases, Tensor[] multipliers, Tensor[] shifts, "
      "Tensor linear, Tensor linear_bias, float unit, str arithmetic) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("fused_logits(Tensor replicas, Tensor packed, int[] shape, str arithmetic) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "fused_votes(Tensor images, Tensor slots, Tensor image_ids, Tensor sample_ids, Tensor key, str law, "
      "Tensor[] table, Tensor scale, Tensor shift, bool clip, Tensor packed, int[] shape, str arithmetic, "
      "Tensor(a13!) counts, Tensor(a14!) invalid, str voting=\"prediction\", Tensor? weights=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "fused_gradients(Tensor replicas, Tensor classes, Tensor packed, int[] shape, str arithmetic) -> (Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
}

namespace {

void check_index(const at::Tensor& index, const char* op, const char* name, int64_t rows) {
  TORCH_CHECK(index.dim() == 1 && index.scalar_type() == at::kLong && index.size(0) == rows, op, ": ", name,
              " must be int64 [", rows, "], not ", index.scalar_type(), " ", index.sizes());
}

void check_channels(const at::Tensor& constant, const char* op, const char* name, int64_t channels) {
  TORCH_CHECK(constant.scalar_type() == at::kFloat && (constant.sizes() == at::IntArrayRef{channels}), op, ": ", name,
              " must be float32 [", channels, "], not ", constant.scalar_type(), " ", constant.sizes());
}

}  // namespace

void check_noisy_replicas(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
                          const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law,
                          at::TensorList table, const at::Tensor& scale, const at::Tensor& shift,
                          at::ScalarType dtype) {
  constexpr const char* op = "noisy_replicas";
  TORCH_CHECK(images.dim() == 4, op, ": images must be [S, C, H, W], not ", images.sizes());
  TORCH_CHECK(images.scalar_type() == at::kByte || images.scalar_type() == at::kFloat, op,
              ": images must be uint8 or float32, not ", images.scalar_type());
  const int64_t channels = images.size(1);
  TORCH_CHECK(slots.dim() == 1, op, ": slots must be int64 [R], not ", slots.sizes());
  const int64_t rows = slots.size(0);
  check_index(slots, op, "slots", rows);
  check_index(image_ids, op, "image_ids", rows);
  check_index(sample_ids, op, "sample_ids", rows);
  check_index(key, op, "key", 2);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kShort, op,
              ": dtype must be float32, bfloat16, float16 or int16, not ", dtype);
  check_channels(scale, op, "scale", channels);
  check_channels(shift, op, "shift", channels);
  if (law == "lattice") {
    TORCH_CHECK(images.scalar_type() == at::kByte, op, ": the lattice law needs uint8 images, not ",
                images.scalar_type());
    TORCH_CHECK(table.size() == 3 && table[0].scalar_type() == at::kLong && table[1].scalar_type() == at::kLong &&
                    table[2].scalar_type() == at::kInt && table[0].dim() == 2 && table[2].dim() == 2 &&
                    table[0].sizes() == table[1].sizes() && table[0].size(0) == table[2].size(0),
                op, ": table must come from noise.lattice_law");
  } else {
    TORCH_CHECK(law == "gaussian", op, ": law must be 'lattice' or 'gaussian', not '", law, "'");
    TORCH_CHECK(table.size() == 1 && table[0].scalar_type() == at::kFloat && table[0].dim() == 1, op,
                ": table must come from noise.gaussian_law");
  }
  TORCH_CHECK(table[0].size(0) == 1 || table[0].size(0) == channels, op, ": sigma has ", table[0].size(0),
              " entries; the images have ", channels, " channels");
  TORCH_CHECK(channels * images.size(2) * images.size(3) < int64_t{1} << 32, op,
              ": an image may have at most 2^32 - 1 elements");
}

void check_rows(const int64_t* slots, const int64_t* image_ids, const int64_t* sample_ids, int64_t rows,
                int64_t images) {
  for (int64_t row = 0; row < rows; ++row) {
    if (slots[row] < 0) continue;
    TORCH_CHECK(slots[row] < images, "noisy_replicas: slots[", row, "] is ", slots[row], "; there are ", images,
                " images");
    TORCH_CHECK(image_ids[row] >= 0 && image_ids[row] < int64_t{1} << 44, "noisy_replicas: image_ids[", row, "] is ",
                image_ids[row], "; it must lie in 0 .. 2^44 - 1");
    TORCH_CHECK(sample_ids[row] >= 0 && sample_ids[row] < int64_t{1} << 40, "noisy_replicas: sample_ids[", row, "] is ",
                sample_ids[row], "; it must lie in 0 .. 2^40 - 1");
  }
}

Voting voting_of(c10::string_view name) {
  if (name == "prediction") return Voting::prediction;
  if (name == "weighted") return Voting::weighted;
  if (name == "soft") return Voting::soft;
  TORCH_CHECK(name == "logit", "tally: voting must be 'prediction', 'weighted', 'soft' or 'logit', not '", name, "'");
  return Voting::logit;
}

void check_tally(const at::Tensor& logits, const at::Tensor& slots, const at::Tensor& counts, const at::Tensor& invalid,
                 c10::string_view voting, const std::optional<at::Tensor>& weights) {
  constexpr const char* op = "tally";
  TORCH_CHECK(logits.dim() == 2 && logits.is_floating_point() && logits.size(1) > 0, op,
              ": logits must be floating [R, K], not ", logits.scalar_type(), " ", logits.sizes());
  const at::ScalarType dtype = logits.scalar_type();
  TORCH_CHECK(dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, op,
              ": logits must be float64, float32, bfloat16 or float16, not ", dtype);
  check_index(slots, op, "slots", logits.size(0));
  TORCH_CHECK(counts.dim() == 2 && counts.scalar_type() == at::kLong && counts.size(1) == logits.size(1), op,
              ": counts must be int64 [S, ", logits.size(1), "], not ", counts.scalar_type(), " ", counts.sizes());
  check_index(invalid, op, "invalid", counts.size(0));
  if (voting_of(voting) != Voting::weighted) {
    TORCH_CHECK(!weights, op, ": weights belong to voting 'weighted', not to '", voting, "'");
    return;
  }
  TORCH_CHECK(weights, op, ": voting 'weighted' needs weights");
  TORCH_CHECK(weights->dim() == 1 && weights->scalar_type() == at::kLong && weights->numel() > 0 &&
                  weights->numel() <= logits.size(1),
              op, ": weights must be int64 [1 .. ", logits.size(1), "], not ", weights->scalar_type(), " ",
              weights->sizes());
}

void check_replica_sum(const at::Tensor& gradients, const at::Tensor& slots, const at::Tensor& scale, int64_t images) {
  constexpr const char* op = "replica_sum";
  TORCH_CHECK(gradients.dim() == 4, op, ": gradients must be [R, C, H, W], not ", gradients.sizes());
  const at::ScalarType dtype = gradients.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, op,
              ": gradients must be float32, bfloat16 or float16, not ", dtype);
  check_index(slots, op, "slots", gradients.size(0));
  check_channels(scale, op, "scale", gradients.size(1));
  TORCH_CHECK(images >= 0, op, ": images must be at least 0, not ", images);
}

void check_attack_step(const at::Tensor& adversarial, const at::Tensor& images, const at::Tensor& gradients,
                       c10::string_view norm, double alpha, double eps, double low, double high) {
  constexpr const char* op = "attack_step";
  TORCH_CHECK(adversarial.dim() == 4 && adversarial.scalar_type() == at::kFloat, op,
              ": adversarial must be float32 [N, C, H, W], not ", adversarial.scalar_type(), " ", adversarial.sizes());
  const auto check_like = [&](const at::Tensor& tensor, const char* name) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.sizes() == adversarial.sizes(), op, ": ", name,
                " must be float32 ", adversarial.sizes(), ", not ", tensor.scalar_type(), " ", tensor.sizes());
    const at::MemOverlapStatus overlap = at::get_overlap_status(adversarial, tensor);
    TORCH_CHECK(overlap != at::MemOverlapStatus::Full && overlap != at::MemOverlapStatus::Partial, op, ": ", name,
                " must not share memory with adversarial, which is written");
  };
  check_like(images, "images");
  check_like(gradients, "gradients");
  TORCH_CHECK(norm == "linf" || norm == "l2", op, ": norm must be 'linf' or 'l2', not '", norm, "'");
  TORCH_CHECK(alpha >= 0 && std::isfinite(static_cast<float>(alpha)), op,
              ": alpha must be at least 0 and finite in float32, not ", alpha);
  TORCH_CHECK(eps >= 0 && std::isfinite(eps), op, ": eps must be at least 0 and finite, not ", eps);
  TORCH_CHECK(low <= high, op, ": low must be at most high, not ", low, " and ", high);
  TORCH_CHECK(adversarial.numel() < adversarial.size(0) << 32 || adversarial.numel() == 0, op,
              ": an image may have at most 2^32 - 1 elements");
}

void check_perturb_weights(const at::Tensor& weights, const at::Tensor& scales, const at::Tensor& factors,
                           const at::Tensor& tiles, const at::Tensor& passes, const at::Tensor& key,
                           at::ScalarType dtype) {
  constexpr const char* op = "perturb_weights";
  TORCH_CHECK(weights.dim() == 2 && weights.size(1) == kTile && weights.scalar_type() == at::kFloat, op,
              ": weights must be float32 [T, 64], not ", weights.scalar_type(), " ", weights.sizes());
  const int64_t count = weights.size(0);
  TORCH_CHECK(scales.sizes() == weights.sizes() && scales.scalar_type() == at::kFloat, op, ": scales must be float32 ",
              weights.sizes(), ", not ", scales.scalar_type(), " ", scales.sizes());
  TORCH_CHECK(
      factors.dim() == 3 && factors.size(1) == count && factors.size(2) == kTile && factors.scalar_type() == at::kFloat,
      op, ": factors must be float32 [r, ", count, ", 64], not ", factors.scalar_type(), " ", factors.sizes());
  TORCH_CHECK(factors.size(0) <= kTile, op, ": factors have rank ", factors.size(0), "; at most 64 is possible");
  TORCH_CHECK(tiles.scalar_type() == at::kLong && (tiles.sizes() == at::IntArrayRef{2, count}), op,
              ": tiles must be int64 [2, ", count, "], not ", tiles.scalar_type(), " ", tiles.sizes());
  TORCH_CHECK(passes.dim() == 1 && passes.scalar_type() == at::kLong, op, ": passes must be int64 [P], not ",
              passes.scalar_type(), " ", passes.sizes());
  check_index(key, op, "key", 2);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, op,
              ": dtype must be float32, bfloat16 or float16, not ", dtype);
}

void check_places(const int64_t* layers, const int64_t* numbers, int64_t tiles, const int64_t* passes, int64_t count) {
  const auto check = [](const int64_t* values, int64_t many, int bits, const char* name) {
    for (int64_t i = 0; i < many; ++i)
      TORCH_CHECK(values[i] >= 0 && values[i] < int64_t{1} << bits, "perturb_weights: ", name, i, "] is ", values[i],
                  "; it must lie in 0 .. 2^", bits, " - 1");
  };
  check(layers, tiles, 32, "tiles[0, ");
  check(numbers, tiles, 28, "tiles[1, ");
  check(passes, count, 40, "passes[");
}

Dtype dtype_of(at::ScalarType dtype) {
  return dtype == at::kFloat      ? Dtype::f32
         : dtype == at::kBFloat16 ? Dtype::bf16
         : dtype == at::kHalf     ? Dtype::f16
         : dtype == at::kShort    ? Dtype::i16
                                  : Dtype::f64;
}

}  // namespace smoothfast
