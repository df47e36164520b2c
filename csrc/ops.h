// The part of an op that its backends share on the side of torch: checks of its arguments, and names and types as the
// kernels have them.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "rules/types.h"
#include "rules/votes.h"

namespace smoothfast {

void check_noisy_replicas(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
                          const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law,
                          at::TensorList table, const at::Tensor& scale, const at::Tensor& shift, at::ScalarType dtype);

// The ranges of what a row names; only where the values are on the host.
void check_rows(const int64_t* slots, const int64_t* image_ids, const int64_t* sample_ids, int64_t rows,
                int64_t images);

void check_tally(const at::Tensor& logits, const at::Tensor& slots, const at::Tensor& counts, const at::Tensor& invalid,
                 c10::string_view voting, const std::optional<at::Tensor>& weights);
Voting voting_of(c10::string_view name);

void check_replica_sum(const at::Tensor& gradients, const at::Tensor& slots, const at::Tensor& scale, int64_t images);

void check_attack_step(const at::Tensor& adversarial, const at::Tensor& images, const at::Tensor& gradients,
                       c10::string_view norm, double alpha, double eps, double low, double high);

void check_perturb_weights(const at::Tensor& weights, const at::Tensor& scales, const at::Tensor& factors,
                           const at::Tensor& tiles, const at::Tensor& passes, const at::Tensor& key,
                           at::ScalarType dtype);

// The ranges of layers [tiles], of the numbers of their tiles, and of passes; only where the values are on the host.
void check_places(const int64_t* layers, const int64_t* numbers, int64_t tiles, const int64_t* passes, int64_t count);

// On CPUs; fused_votes is made of them.
at::Tensor noisy_replicas_cpu(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
                              const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law,
                              at::TensorList table, const at::Tensor& scale, const at::Tensor& shift, bool clip,
                              at::ScalarType dtype, bool channels_last);
void tally_cpu(const at::Tensor& logits, const at::Tensor& slots, at::Tensor& counts, at::Tensor& invalid,
               c10::string_view voting, const std::optional<at::Tensor>& weights);

// One of the four floating dtypes or int16: others were refused.
Dtype dtype_of(at::ScalarType dtype);

}  // namespace smoothfast
