#include "noisy_replicas.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../ops.h"
#include "isa.h"

#define KERNEL_BODY "noisy_replicas_kernel.h"
#include "each_isa.inc"

namespace smoothfast {

const ReplicaKernels& replica_kernels() { return SMOOTHFAST_ACTIVE_KERNELS(active_isa()); }

namespace {

constexpr int64_t kRowsPerTask = 64;         // enough to pay for the hoisted rounds
constexpr int64_t kElementsPerTask = 32768;  // about 20 us: less does not pay for a thread

// Consecutive rows that share an image and the upper word of the sample id, at most kRowsPerTask of them.
std::vector<RowRun> row_runs(const int64_t* slots, const int64_t* image_ids, const int64_t* sample_ids, int64_t rows) {
  std::vector<RowRun> runs;
  for (int64_t row = 0; row < rows; ++row) {
    if (slots[row] < 0) continue;
    const bool extends = !runs.empty() && runs.back().last == row && row - runs.back().first < kRowsPerTask &&
                         slots[row] == slots[row - 1] && image_ids[row] == image_ids[row - 1] &&
                         sample_ids[row] >> 32 == sample_ids[row - 1] >> 32;
    if (extends)
      ++runs.back().last;
    else
      runs.push_back({row, row + 1, slots[row]});
  }
  return runs;
}

std::vector<Tile> tiles(int64_t channels, int64_t plane, bool channels_last) {
  const int group = channels_last && channels == kMaxGroup ? kMaxGroup : 1;
  const int64_t pixels = group == 1 ? kTilePixels : kInterleavedPixels;
  std::vector<Tile> all;
  for (int64_t channel = 0; channel < channels; channel += group)
    for (int64_t begin = 0; begin < plane; begin += pixels)
      all.push_back({channel, begin, std::min(begin + pixels, plane), group});
  return all;
}

std::vector<Lattice> lattice_laws(at::TensorList table, int64_t channels) {
  const at::Tensor &high = table[0], &low = table[1], &guide = table[2];
  const int64_t sigmas = high.size(0), reach = high.size(1) / 2, entries = guide.size(1);
  std::vector<Lattice> laws;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t s = sigmas == 1 ? 0 : c;
    laws.push_back({high.const_data_ptr<int64_t>() + s * 2 * reach, low.const_data_ptr<int64_t>() + s * 2 * reach,
                    guide.const_data_ptr<int32_t>() + s * entries, static_cast<int32_t>(reach), guide_shift(entries)});
  }
  return laws;
}

}  // namespace

at::Tensor noisy_replicas_cpu(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
                              const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law,
                              at::TensorList table, const at::Tensor& scale, const at::Tensor& shift, bool clip,
                              at::ScalarType dtype, bool channels_last) {
  check_noisy_replicas(images, slots, image_ids, sample_ids, key, law, table, scale, shift, dtype);
  const int64_t rows = slots.size(0), channels = images.size(1), plane = images.size(2) * images.size(3);
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  at::Tensor out = at::empty({rows, channels, images.size(2), images.size(3)}, images.options().dtype(dtype), format);
  if (out.numel() == 0) return out;

  const at::Tensor source = images.contiguous(), slot_list = slots.contiguous(), image_list = image_ids.contiguous(),
                   sample_list = sample_ids.contiguous(), key_pair = key.contiguous(), a = scale.contiguous(),
                   b = shift.contiguous();
  const int64_t *slot = slot_list.const_data_ptr<int64_t>(), *image_id = image_list.const_data_ptr<int64_t>(),
                *sample_id = sample_list.const_data_ptr<int64_t>(), *seed = key_pair.const_data_ptr<int64_t>();
  check_rows(slot, image_id, sample_id, rows, images.size(0));

  const bool is_lattice = law == "lattice", is_float = images.scalar_type() == at::kFloat;
  std::vector<at::Tensor> constants;
  for (const at::Tensor& part : table) constants.push_back(part.contiguous());
  std::vector<Lattice> lattice;
  std::vector<float> sigma;
  if (is_lattice) {
    lattice = lattice_laws(constants, channels);
  } else {
    const float* values = constants[0].const_data_ptr<float>();
    for (int64_t c = 0; c < channels; ++c) sigma.push_back(values[constants[0].size(0) == 1 ? 0 : c]);
  }
  const float infinity = std::numeric_limits<float>::infinity();
  const Replicas job = {source.const_data_ptr(),
                        out.mutable_data_ptr(),
                        image_id,
                        sample_id,
                        make_key(seed[0]),
                        static_cast<uint32_t>(seed[1]),
                        channels,
                        plane,
                        channels_last,
                        lattice.data(),
                        sigma.data(),
                        a.const_data_ptr<float>(),
                        b.const_data_ptr<float>(),
                        clip ? 0.0f : -infinity,
                        clip ? (is_float ? 1.0f : 255.0f) : infinity};

  for (int64_t row = 0; row < rows; ++row)
    if (slot[row] < 0) out.select(0, row).zero_();
  const std::vector<RowRun> runs = row_runs(slot, image_id, sample_id, rows);
  const std::vector<Tile> all = tiles(channels, plane, channels_last);
  const ReplicaKernels& kernels = replica_kernels();
  const TileKernel kernel =
      (is_lattice ? kernels.lattice : kernels.gaussian)[is_float][static_cast<int>(dtype_of(dtype))];
  const int64_t tasks = static_cast<int64_t>(runs.size() * all.size());
  const int64_t elements_per_task = std::max<int64_t>(1, rows * channels * plane / std::max<int64_t>(tasks, 1));
  at::parallel_for(0, tasks, std::max<int64_t>(1, kElementsPerTask / elements_per_task),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t task = begin; task < end; ++task)
                       kernel(job, runs[task / all.size()], all[task % all.size()]);
                   });
  return out;
}

TORCH_LIBRARY_IMPL(smoothfast, CPU, m) { m.impl("noisy_replicas", noisy_replicas_cpu); }

}  // namespace smoothfast
