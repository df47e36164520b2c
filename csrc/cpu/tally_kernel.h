// The body of tally, included once per instruction set by each_isa.inc. All floating types are compared as integers of
// their width: sign and magnitude order them, -0 equals 0, and a full exponent marks what is not finite. So no
// conversion is needed, and every instruction set gives the same votes by construction.
namespace smoothfast {
namespace ISA_NAMESPACE {
namespace {

template <class Bits>
inline Bits ordered(Bits bits) {
  const Bits magnitude = bits & std::numeric_limits<Bits>::max();
  return bits < 0 ? -magnitude : magnitude;
}

template <class Bits, Bits kExponent>
void votes(const void* logits, int64_t rows, int64_t classes, int64_t* out) {
  for (int64_t r = 0; r < rows; ++r) {
    const Bits* __restrict row = (const Bits*)logits + r * classes;
    Bits best = std::numeric_limits<Bits>::min();
    Bits broken = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const Bits value = ordered(row[c]);
      best = value > best ? value : best;
      broken |= (row[c] & kExponent) == kExponent;
    }
    int64_t first = 0;
    while (ordered(row[first]) != best) ++first;
    out[r] = broken ? kInvalidVote : first;
  }
}

const TallyKernels kernels = {
    votes<int64_t, 0x7FF0000000000000>,
    votes<int32_t, 0x7F800000>,
    votes<int16_t, 0x7F80>,
    votes<int16_t, 0x7C00>,
};

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace smoothfast
