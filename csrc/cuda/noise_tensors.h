// The tensors that noisy images are made of, contiguous for the time of a launch.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "noisy_replicas.h"

namespace smoothfast {

// Arguments of noisy_replicas that were checked.
struct NoiseTensors {
  at::Tensor images, slots, image_ids, sample_ids, key, scale, shift;
  std::vector<at::Tensor> table;
  bool lattice;

  NoiseTensors(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
               const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law, at::TensorList table,
               const at::Tensor& scale, const at::Tensor& shift);

  // All that is known before it is known how they are launched.
  ReplicaArgs args(bool clip) const;
};

}  // namespace smoothfast
