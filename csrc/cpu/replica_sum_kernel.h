// The body of replica_sum, included once per instruction set by each_isa.inc. The sums of a tile stay in L1 while the
// rows of its slot go by; the compiler vectorises over elements, so that no sum is reordered.
namespace smoothfast {
namespace ISA_NAMESPACE {
namespace {

struct F32 {
  using Stored = float;
  static inline float value(float stored) { return stored; }
};

struct Bf16 {
  using Stored = uint16_t;
  static inline float value(uint16_t stored) { return float_of((uint32_t)stored << 16); }
};

struct F16 {
  using Stored = uint16_t;
  static inline float value(uint16_t stored) {
    const uint32_t sign = (uint32_t)(stored & 0x8000) << 16, magnitude = (uint32_t)(stored & 0x7FFF) << 13;
    const uint32_t normal = magnitude + (magnitude < 0x0F800000 ? 0x38000000 : 0x70000000);  // infinity and NaN: twice
    // Subtracting 2^-14 shifts a subnormal half into place without any subnormal float, which is slow.
    const uint32_t subnormal = bits_of(float_of(magnitude + 0x38800000) - 0x1p-14f);
    return float_of(sign | (magnitude < 0x00800000 ? subnormal : normal));
  }
};

template <class In>
[[gnu::noinline]] void add(const typename In::Stored* __restrict row, int64_t count, float* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += In::value(row[i]);
}

// Four rows one after another while a sum is in its register.
template <class In, class T = typename In::Stored>
[[gnu::noinline]] void add_four(const T* __restrict a, const T* __restrict b, const T* __restrict c,
                                const T* __restrict d, int64_t count, float* __restrict sums) {
  for (int64_t i = 0; i < count; ++i)
    sums[i] = (((sums[i] + In::value(a[i])) + In::value(b[i])) + In::value(c[i])) + In::value(d[i]);
}

[[gnu::noinline]] void multiply(const float* __restrict sums, int64_t count, float scale, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = scale * sums[i];
}

void write_planes(const ReplicaSum& job, const float* sums, int64_t begin, int64_t end, float* out) {
  for (int64_t i = begin, next; i < end; i = next) {
    const int64_t channel = i / job.plane;
    next = std::min(end, (channel + 1) * job.plane);
    multiply(sums + i - begin, next - i, job.scale[channel], out + i);
  }
}

void write_pixels(const ReplicaSum& job, const float* sums, int64_t begin, int64_t end, float* out) {
  int64_t pixel = begin / job.channels, channel = begin % job.channels;
  for (int64_t i = 0; i < end - begin; ++i) {
    out[channel * job.plane + pixel] = job.scale[channel] * sums[i];
    if (++channel < job.channels) continue;
    channel = 0;
    ++pixel;
  }
}

template <class In>
void tile(const ReplicaSum& job, int64_t slot, int64_t begin, int64_t end) {
  alignas(64) float sums[kSumTile] = {};
  const int64_t elements = job.channels * job.plane;
  const auto row = [&](int64_t i) {
    return (const typename In::Stored*)job.gradients + job.rows[i] * elements + begin;
  };
  int64_t i = job.first[slot];
  for (const int64_t last = job.first[slot + 1] - 3; i < last; i += 4)
    add_four<In>(row(i), row(i + 1), row(i + 2), row(i + 3), end - begin, sums);
  for (; i < job.first[slot + 1]; ++i) add<In>(row(i), end - begin, sums);
  (job.channels_last ? write_pixels : write_planes)(job, sums, begin, end, job.out + slot * elements);
}

const SumKernels kernels = {{tile<F32>, tile<Bf16>, tile<F16>}};

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace smoothfast
