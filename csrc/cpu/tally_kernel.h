// The body of tally, included once per instruction set by each_isa.inc. The compiler vectorises every innermost loop,
// and those over a block of short rows only as long as they take the block for one row.
namespace smoothfast {
namespace ISA_NAMESPACE {
namespace {

template <class Format>
struct Scanned {
  typename Format::Bits best;  // the largest logit, as `ordered`
  bool broken;
};

template <class Format>
inline __attribute__((always_inline)) Scanned<Format> scan(const typename Format::Bits* __restrict row,
                                                           int64_t classes) {
  using Bits = typename Format::Bits;
  Bits best = kLeast<Format>;
  Bits broken = 0;
  for (int64_t c = 0; c < classes; ++c) {
    const Bits value = ordered<Format>(row[c]);
    best = value > best ? value : best;
    broken |= not_finite<Format>(row[c]);
  }
  return {best, broken != 0};
}

template <class Format>
void votes(const void* logits, int64_t rows, int64_t classes, int64_t* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto* row = static_cast<const typename Format::Bits*>(logits) + r * classes;
    const Scanned<Format> scanned = scan<Format>(row, classes);
    int64_t first = 0;
    while (ordered<Format>(row[first]) != scanned.best) ++first;
    out[r] = scanned.broken ? kInvalidVote : first;
  }
}

template <class Format>
void soft_shares(const Block& block) {
  const auto* __restrict logits = static_cast<const typename Format::Bits*>(block.logits);
  float* __restrict terms = block.terms;
  int64_t* __restrict shares = block.shares;
  const int64_t classes = block.classes, all = block.rows * classes;
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t first = r * classes;
    const Scanned<Format> scanned = scan<Format>(logits + first, classes);
    const float largest = number<Format>(ordered<Format>(scanned.best));
    for (int64_t i = first; i < first + classes; ++i) terms[i] = number<Format>(logits[i]) - largest;
    block.broken[r] = scanned.broken;
  }
  for (int64_t i = 0; i < all; ++i) terms[i] = exponential(terms[i]);
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t first = r * classes;
    uint64_t total = 0;  // of a broken row it is anything, and may wrap around
    for (int64_t i = first; i < first + classes; ++i) total += (uint64_t)fixed(terms[i] * kTermUnits);
    const double units = units_per_term((int64_t)total);
    for (int64_t i = first; i < first + classes; ++i) shares[i] = fixed(terms[i] * units);
  }
}

template <class Format>
void logit_shares(const Block& block) {
  const auto* __restrict logits = static_cast<const typename Format::Bits*>(block.logits);
  int64_t* __restrict shares = block.shares;
  const int64_t classes = block.classes, all = block.rows * classes;
  for (int64_t r = 0; r < block.rows; ++r) block.broken[r] = scan<Format>(logits + r * classes, classes).broken;
  for (int64_t i = 0; i < all; ++i) shares[i] = logit_share(number<Format>(logits[i]));
}

template <class Format>
constexpr FormatKernels of_format = {votes<Format>, weighted_shares<Format>, soft_shares<Format>, logit_shares<Format>};

const TallyKernels kernels = {{of_format<Float32>, of_format<Bfloat16>, of_format<Float16>, of_format<Float64>}};

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace smoothfast
