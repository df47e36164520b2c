#include "attack_step.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>

#include "../ops.h"
#include "isa.h"

#define KERNEL_BODY "attack_step_kernel.h"
#include "each_isa.inc"

namespace smoothfast {
namespace {

constexpr int64_t kElementsPerTask = 32768;  // about 20 us: less does not pay for a thread

void attack_step_cpu(at::Tensor& adversarial, const at::Tensor& images, const at::Tensor& gradients,
                     c10::string_view norm, double alpha, double eps, double low, double high) {
  check_attack_step(adversarial, images, gradients, norm, alpha, eps, low, high);
  if (adversarial.numel() == 0) return;
  const at::Tensor target = adversarial.contiguous(), source = images.contiguous(), slope = gradients.contiguous();
  const int64_t count = target.size(0), elements = target.numel() / count;
  const AttackStep job = {target.mutable_data_ptr<float>(), source.const_data_ptr<float>(),
                          slope.const_data_ptr<float>(), elements, make_attack(alpha, eps, low, high)};
  const AttackKernels& kernels = SMOOTHFAST_ACTIVE_KERNELS(active_isa());
  const auto run = [&](AttackKernel kernel, int64_t units, int64_t grain) {
    at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) { kernel(job, begin, end); });
  };
  if (norm == "linf")
    run(kernels.linf, count * elements, kElementsPerTask);
  else
    run(kernels.l2, count, std::max<int64_t>(1, kElementsPerTask / elements));
  if (!target.is_same(adversarial)) adversarial.copy_(target);
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CPU, m) { m.impl("attack_step", attack_step_cpu); }

}  // namespace smoothfast
