// The body of tally, included once per instruction set by each_isa.inc.
namespace smoothfast {
namespace ISA_NAMESPACE {
namespace {

template <class Format>
void votes(const void* logits, int64_t rows, int64_t classes, int64_t* out) {
  using Bits = typename Format::Bits;
  for (int64_t r = 0; r < rows; ++r) {
    const Bits* __restrict row = (const Bits*)logits + r * classes;
    Bits best = Format::kLeast;
    Bits broken = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const Bits value = Format::ordered(row[c]);
      best = value > best ? value : best;
      broken |= Format::broken(row[c]);
    }
    int64_t first = 0;
    while (Format::ordered(row[first]) != best) ++first;
    out[r] = broken ? kInvalidVote : first;
  }
}

const TallyKernels kernels = {votes<Float64>, votes<Float32>, votes<Bfloat16>, votes<Float16>};

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace smoothfast
