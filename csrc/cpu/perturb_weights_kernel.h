// The body of perturb_weights, included once per instruction set by each_isa.inc. As in noisy_replicas, a few passes
// over buffers that stay in L1: words -> normals -> sums -> output.
namespace smoothfast {
namespace ISA_NAMESPACE {
namespace {

#include "draws_kernel.h"

// In place: normals to the weights that they perturb.
[[gnu::noinline]] void add_own(float* __restrict sums, const float* __restrict weights, const float* __restrict scales,
                               int count) {
  for (int i = 0; i < count; ++i) sums[i] = fma(scales[i], sums[i], weights[i]);
}

[[gnu::noinline]] void add_shared(float* __restrict sums, const float* __restrict factor, float normal, int count) {
  for (int i = 0; i < count; ++i) sums[i] = fma(factor[i], normal, sums[i]);
}

template <class Out>
[[gnu::noinline]] void write(const float* __restrict sums, int count, typename Out::Stored* __restrict out) {
  for (int i = 0; i < count; ++i) out[i] = Out::cast(sums[i]);
}

template <class Out>
void perturb(const Perturbation& job, const TileRun& run, const PassRun& passes) {
  alignas(64) uint32_t own_hoisted[kRunWeights], shared_hoisted[kTile], word_buffer[kRunWeights];
  alignas(64) float sums[kRunWeights], shared[kTile];
  const RoundKeys keys = round_keys(job.key);
  const Row own = make_row(run.layer, job.passes[passes.first], job.tag);
  const Row low_rank = make_row(run.layer + kLowRank, job.passes[passes.first], job.tag);
  const int count = run.count * kTile, ranks = (job.rank + 31) / 32 * 32;
  hoist(own_hoisted, count / 4, (uint32_t)(run.number * kTile / 4), own.c2, own.c3, keys);
  hoist(shared_hoisted, kTile / 4, 0, low_rank.c2, low_rank.c3, keys);
  const int64_t first = run.first * kTile, weights = job.tiles * kTile;
  for (int64_t pass = passes.first; pass < passes.last; ++pass) {
    const uint64_t product = row_product({(uint32_t)job.passes[pass], own.c2, own.c3}, keys);  // the rows differ in c3
    if (ranks > 0) {
      words(shared_hoisted, kTile / 4, product, keys, word_buffer);
      normals(word_buffer, ranks, shared);
    }
    words(own_hoisted, count / 4, product, keys, word_buffer);
    normals(word_buffer, count, sums);
    add_own(sums, job.weights + first, job.scales + first, count);
    for (int k = 0; k < job.rank; ++k) add_shared(sums, job.factors + k * weights + first, shared[k], count);
    write<Out>(sums, count, (typename Out::Stored*)job.out + pass * weights + first);
  }
}

const PerturbKernels kernels = {{perturb<F32>, perturb<Bf16>, perturb<F16>}};

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace smoothfast
