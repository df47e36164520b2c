#include "tally.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "../ops.h"
#include "../rules/soft_votes.h"
#include "isa.h"

#define KERNEL_BODY "tally_kernel.h"
#include "each_isa.inc"

namespace smoothfast {

template <class Format>
void weighted_shares(const Block& block) {
  // A key ascends as logits descend, and then with the class, which is its lower half: no two are equal.
  __extension__ using Key = std::conditional_t<sizeof(typename Format::Bits) == 8, __int128, int64_t>;
  constexpr Key kClasses = Key{1} << 32;
  std::vector<Key> keys(block.classes);
  std::fill_n(block.shares, block.rows * block.classes, 0);
  for (int64_t r = 0; r < block.rows; ++r) {
    const auto* row = static_cast<const typename Format::Bits*>(block.logits) + r * block.classes;
    bool broken = false;
    for (int64_t c = 0; c < block.classes; ++c) {
      keys[c] = c - ordered<Format>(row[c]) * kClasses;
      broken |= not_finite<Format>(row[c]);
    }
    block.broken[r] = broken;
    const auto end = keys.begin() + block.ranks;
    if (2 * block.ranks < block.classes)  // many classes, few ranks: a heap of these
      std::partial_sort(keys.begin(), end, keys.end());
    else
      std::sort(keys.begin(), keys.end());
    for (int64_t k = 0; k < block.ranks; ++k)
      block.shares[r * block.classes + static_cast<uint32_t>(keys[k])] = block.weights[k];
  }
}

namespace {

constexpr int64_t kLogitsPerTask = 16384, kLogitsPerBlock = 2048;  // a block with its shares stays in L1

struct Rows {
  const char* logits;
  const int64_t* slots;
  int64_t count, classes, bytes;  // bytes: of a row

  int64_t per_task() const { return std::max<int64_t>(1, kLogitsPerTask / classes); }
  int64_t per_block() const { return std::max<int64_t>(1, kLogitsPerBlock / classes); }
};

void add_votes(const Rows& rows, VoteKernel kernel, at::Tensor& counts, at::Tensor& invalid) {
  std::vector<int64_t> votes(rows.count);
  at::parallel_for(0, rows.count, rows.per_task(), [&](int64_t begin, int64_t end) {
    kernel(rows.logits + begin * rows.bytes, end - begin, rows.classes, votes.data() + begin);
  });

  // Serial on purpose: a nanosecond a row, and rows of one slot stand together.
  auto count_of = counts.accessor<int64_t, 2>();
  auto invalid_of = invalid.accessor<int64_t, 1>();
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t slot = rows.slots[r];
    if (slot < 0) continue;
    if (votes[r] == kInvalidVote)
      ++invalid_of[slot];
    else
      ++count_of[slot][votes[r]];
  }
}

void add_shares(const Rows& rows, ShareKernel kernel, const std::vector<int64_t>& weights, at::Tensor& counts,
                at::Tensor& invalid) {
  auto count_of = counts.accessor<int64_t, 2>();
  auto invalid_of = invalid.accessor<int64_t, 1>();
  std::mutex adding;  // integers: the order in which blocks come changes nothing
  at::parallel_for(0, rows.count, rows.per_task(), [&](int64_t begin, int64_t end) {
    const int64_t most = std::min(rows.per_block(), end - begin), classes = rows.classes;
    std::vector<float> terms(most * classes);
    std::vector<int64_t> shares(most * classes);
    const auto broken = std::make_unique<bool[]>(most);
    for (int64_t first = begin; first < end; first += most) {
      const Block block = {rows.logits + first * rows.bytes,
                           std::min(most, end - first),
                           classes,
                           weights.data(),
                           static_cast<int64_t>(weights.size()),
                           terms.data(),
                           shares.data(),
                           broken.get()};
      kernel(block);
      const std::lock_guard<std::mutex> alone(adding);
      for (int64_t r = 0; r < block.rows; ++r) {
        const int64_t slot = rows.slots[first + r];
        if (slot < 0) continue;
        if (broken[r]) {
          ++invalid_of[slot];
          continue;
        }
        auto count = count_of[slot];
        for (int64_t c = 0; c < classes; ++c) count[c] += shares[r * classes + c];
      }
    }
  });
}

std::vector<int64_t> values_of(const std::optional<at::Tensor>& weights) {
  if (!weights) return {};
  const at::Tensor list = weights->contiguous();
  const int64_t* values = list.const_data_ptr<int64_t>();
  return {values, values + list.numel()};
}

}  // namespace

void tally_cpu(const at::Tensor& logits, const at::Tensor& slots, at::Tensor& counts, at::Tensor& invalid,
               c10::string_view voting, const std::optional<at::Tensor>& weights) {
  check_tally(logits, slots, counts, invalid, voting, weights);
  const at::Tensor contiguous = logits.contiguous(), slot_list = slots.contiguous();
  const int64_t classes = logits.size(1), images = counts.size(0);
  const Rows rows = {static_cast<const char*>(contiguous.const_data_ptr()), slot_list.const_data_ptr<int64_t>(),
                     logits.size(0), classes, classes * logits.element_size()};
  for (int64_t r = 0; r < rows.count; ++r)
    TORCH_CHECK(rows.slots[r] < images, "tally: slots[", r, "] is ", rows.slots[r], "; counts has ", images, " rows");
  const auto dtype = static_cast<int>(dtype_of(logits.scalar_type()));
  const FormatKernels& kernels = SMOOTHFAST_ACTIVE_KERNELS(active_isa()).by_dtype[dtype];
  switch (voting_of(voting)) {
    case Voting::prediction:
      return add_votes(rows, kernels.vote, counts, invalid);
    case Voting::weighted:
      return add_shares(rows, kernels.weighted, values_of(weights), counts, invalid);
    case Voting::soft:
      return add_shares(rows, kernels.soft, {}, counts, invalid);
    case Voting::logit:
      return add_shares(rows, kernels.logit, {}, counts, invalid);
  }
}

TORCH_LIBRARY_IMPL(smoothfast, CPU, m) { m.impl("tally", tally_cpu); }

}  // namespace smoothfast
