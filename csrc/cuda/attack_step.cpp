#include "attack_step.h"

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../ops.h"
#include "device.h"

namespace smoothfast {
namespace {

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

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CUDA, m) { m.impl("attack_step", attack_step_cuda); }

}  // namespace smoothfast
