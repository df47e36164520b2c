#include "tally.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../ops.h"
#include "device.h"

namespace smoothfast {
namespace {

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
  tally(args, tally_launch(args.rows, multiprocessors()), dtype_of(rows.scalar_type()), voting_of(voting),
        at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (!count.is_same(counts)) counts.copy_(count);
  if (!broken.is_same(invalid)) invalid.copy_(broken);
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CUDA, m) { m.impl("tally", tally_cuda); }

}  // namespace smoothfast
