// The part that the wrappers of all CUDA kernels (<op>.cpp) share. A wrapper checks arguments, makes the output and
// launches its kernel on the current stream. None waits for the device, and what changes from call to call of a
// captured graph is read there.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

namespace smoothfast {

inline int multiprocessors() { return at::cuda::getCurrentDeviceProperties()->multiProcessorCount; }

inline void check_device(const char* op, const at::Tensor& first, at::TensorList others) {
  for (const at::Tensor& other : others)
    TORCH_CHECK(other.device() == first.device(), op, ": tensors are on ", first.device(), " and ", other.device(),
                "; all must be on one device");
}

}  // namespace smoothfast
