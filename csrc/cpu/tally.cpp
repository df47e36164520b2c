#include "tally.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <limits>
#include <vector>

#include "../ops.h"
#include "isa.h"

#define KERNEL_BODY "tally_kernel.h"
#include "each_isa.inc"

namespace smoothfast {
namespace {

constexpr int64_t kLogitsPerTask = 16384;

VoteKernel vote_kernel(at::ScalarType dtype) {
  const TallyKernels& kernels = SMOOTHFAST_ACTIVE_KERNELS(active_isa());
  switch (dtype) {
    case at::kDouble:
      return kernels.f64;
    case at::kFloat:
      return kernels.f32;
    case at::kBFloat16:
      return kernels.bf16;
    case at::kHalf:
      return kernels.f16;
    default:
      TORCH_CHECK(false, "tally: logits must be float64, float32, bfloat16 or float16, not ", dtype);
  }
}

void tally_cpu(const at::Tensor& logits, const at::Tensor& slots, at::Tensor& counts, at::Tensor& invalid) {
  check_tally(logits, slots, counts, invalid);
  const at::Tensor rows = logits.contiguous(), slot_list = slots.contiguous();
  const int64_t count = rows.size(0), classes = rows.size(1), images = counts.size(0);
  const int64_t* slot = slot_list.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < count; ++r)
    TORCH_CHECK(slot[r] < images, "tally: slots[", r, "] is ", slot[r], "; counts has ", images, " rows");

  std::vector<int64_t> votes(count);
  const VoteKernel kernel = vote_kernel(rows.scalar_type());
  const char* data = static_cast<const char*>(rows.const_data_ptr());
  const int64_t row_bytes = classes * rows.element_size();
  at::parallel_for(0, count, std::max<int64_t>(1, kLogitsPerTask / classes), [&](int64_t begin, int64_t end) {
    kernel(data + begin * row_bytes, end - begin, classes, votes.data() + begin);
  });

  // Serial on purpose: a nanosecond a row, and rows of one slot stand together.
  auto count_of = counts.accessor<int64_t, 2>();
  auto invalid_of = invalid.accessor<int64_t, 1>();
  for (int64_t r = 0; r < count; ++r) {
    if (slot[r] < 0) continue;
    if (votes[r] == kInvalidVote)
      ++invalid_of[slot[r]];
    else
      ++count_of[slot[r]][votes[r]];
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CPU, m) { m.impl("tally", tally_cpu); }

}  // namespace smoothfast
