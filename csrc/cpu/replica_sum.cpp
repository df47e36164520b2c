#include "replica_sum.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../ops.h"
#include "isa.h"

#define KERNEL_BODY "replica_sum_kernel.h"
#include "each_isa.inc"

namespace smoothfast {
namespace {

constexpr int64_t kElementsPerTask = 262144;  // read, in about 20 us: less does not pay for a thread

// Where the rows of each slot begin in a list of all rows by slot; one more entry where the last ones end.
std::vector<int64_t> first_of_slot(const int64_t* slots, int64_t rows, int64_t images) {
  std::vector<int64_t> first(images + 1);
  for (int64_t row = 0; row < rows; ++row) {
    if (slots[row] < 0) continue;
    TORCH_CHECK(slots[row] < images, "replica_sum: slots[", row, "] is ", slots[row], "; there are ", images,
                " images");
    ++first[slots[row] + 1];
  }
  std::partial_sum(first.begin(), first.end(), first.begin());
  return first;
}

std::vector<int64_t> rows_by_slot(const int64_t* slots, int64_t rows, const std::vector<int64_t>& first) {
  std::vector<int64_t> next = first, list(first.back());
  for (int64_t row = 0; row < rows; ++row)
    if (slots[row] >= 0) list[next[slots[row]]++] = row;
  return list;
}

at::Tensor replica_sum_cpu(const at::Tensor& gradients, const at::Tensor& slots, const at::Tensor& scale,
                           int64_t images) {
  check_replica_sum(gradients, slots, scale, images);
  const int64_t rows = gradients.size(0), channels = gradients.size(1), plane = gradients.size(2) * gradients.size(3);
  at::Tensor out = at::empty({images, channels, gradients.size(2), gradients.size(3)}, scale.options());
  const at::Tensor slot_list = slots.contiguous(), factors = scale.contiguous();
  const int64_t* slot = slot_list.const_data_ptr<int64_t>();
  const std::vector<int64_t> first = first_of_slot(slot, rows, images), list = rows_by_slot(slot, rows, first);
  if (out.numel() == 0) return out;

  const bool channels_last = !gradients.is_contiguous() && gradients.is_contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor source = channels_last ? gradients : gradients.contiguous();
  const ReplicaSum job = {source.const_data_ptr(),       list.data(), first.data(), factors.const_data_ptr<float>(),
                          out.mutable_data_ptr<float>(), channels,    plane,        channels_last};
  const auto dtype = static_cast<int>(dtype_of(gradients.scalar_type()));
  const SumKernel kernel = SMOOTHFAST_ACTIVE_KERNELS(active_isa()).by_dtype[dtype];
  const int64_t elements = channels * plane, tiles = (elements + kSumTile - 1) / kSumTile;
  const int64_t elements_per_tile = std::min(kSumTile, elements) * (1 + rows / images);
  at::parallel_for(0, images * tiles, std::max<int64_t>(1, kElementsPerTask / elements_per_tile),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t task = begin; task < end; ++task) {
                       const int64_t at = task % tiles * kSumTile;
                       kernel(job, task / tiles, at, std::min(at + kSumTile, elements));
                     }
                   });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CPU, m) { m.impl("replica_sum", replica_sum_cpu); }

}  // namespace smoothfast
