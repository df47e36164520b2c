// A warp goes through a row of logits.
#include "votes.cuh"

namespace smoothfast {
namespace {

template <class Format, class Rule>
__global__ void __launch_bounds__(kThreads) tally_kernel(const TallyArgs args) {
  const int lane = threadIdx.x % 32;
  for (int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; row < args.rows;
       row += int64_t{gridDim.x} * (kThreads / 32)) {
    const int64_t slot = args.slots[row];
    if (slot < 0) continue;  // of the whole warp
    vote<Format, Rule>(args, row, slot, lane);
  }
}

template <template <class> class Rule>
void launch_kernel(const TallyArgs& args, const Launch& launch, Dtype dtype, cudaStream_t stream) {
  const auto kernel = dtype == Dtype::f64    ? tally_kernel<Float64, Rule<Float64>>
                      : dtype == Dtype::f32  ? tally_kernel<Float32, Rule<Float32>>
                      : dtype == Dtype::bf16 ? tally_kernel<Bfloat16, Rule<Bfloat16>>
                                             : tally_kernel<Float16, Rule<Float16>>;
  kernel<<<launch.grid, kThreads, launch.shared, stream>>>(args);
}

}  // namespace

void tally(const TallyArgs& args, const Launch& launch, Dtype dtype, Voting voting, cudaStream_t stream) {
  const auto launch_rule = voting == Voting::prediction ? launch_kernel<Prediction>
                           : voting == Voting::weighted ? launch_kernel<Weighted>
                           : voting == Voting::soft     ? launch_kernel<Soft>
                                                        : launch_kernel<Logit>;
  launch_rule(args, launch, dtype, stream);
}

}  // namespace smoothfast
