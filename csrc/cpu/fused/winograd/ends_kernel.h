// The ends of a network: replicas to the first map, the last map to logits, and gradients by logits, by the last map
// and by images.

#include "convolution_kernel.h"

// The first convolution: a replica [32][32][3] to the first map of a sample. A row of a kernel is nine numbers in
// memory, or ten, of which the weights of the last are 0.
template <class Number, bool kKeeps>
NOT_INLINED void convolve_image(const Memory& memory, const typename Number::Stored* replica, int64_t sample) {
  using Stored = typename Number::Stored;
  constexpr int kTaps = Number::kTogether == 1 ? 9 : 10;
  const Program& program = memory.program;
  const int64_t outputs = program.shape.widths[0], row = program.row(0);
  Stored* const image = memory.at<Stored>(program.image);
  for (int y = 0; y < 32; ++y) __builtin_memcpy(image + (y + 1) * kImageRow + 3, replica + y * 96, 96 * sizeof(Stored));
  const float* shift = memory.weights(program.places[0].bias);
  float* const out = memory.at(program.x[0]) + row + outputs;
  Bits* const bits = memory.bits(0, sample);
  with_panel(outputs, [&](auto chosen) ALWAYS {
    using Of = decltype(chosen);
    constexpr int kPanel = Of::kPanelWidth;
    for (int64_t c = 0; c < outputs; c += Of::kWidth) {
      const Stored* weights = memory.weights<Stored>(program.places[0].weights) + c / kPanel * 3 * kTaps * kPanel +
                              c % kPanel * Number::kTogether;
      for (int y = 0; y < 32; ++y)
        for (int x = 0; x < 32; x += Of::kRows) {
          Of block;
          block.fill_all(shift + c);
          for (int ky = 0; ky < 3; ++ky)
            block.template add_products<Number>(image + (y + ky) * kImageRow + x * 3, 3, weights + ky * kTaps * kPanel,
                                                kTaps);
#pragma GCC unroll 8
          for (int r = 0; r < Of::kRows; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < Of::kVectors; ++n) {
              const int64_t lanes = c + n * kLanes;
              finish_lanes<Finish::relu, false, kKeeps>(block.sums[r][n], out + y * row + (x + r) * outputs + lanes,
                                                        bits + ((y * 32 + x + r) * outputs + lanes) / kLanes);
            }
        }
    }
  });
}

// Its gradient, float32 [3][32][32]: lanes are pixels here, and the map is put into planes first.
NOT_INLINED void to_image(const Memory& memory, float* gradient) {
  constexpr int64_t kRow = 48, kPlane = kImageRows * kRow;
  constexpr int kRows = 4;
  const Program& program = memory.program;
  const int64_t inputs = program.shape.widths[0], row = program.row(0);
  const float* const map = memory.at(program.x[0]) + row + inputs;
  float* const planes = memory.at(program.planes);
  for (int y = 0; y < 32; ++y)
    for (int x = 0; x < 32; ++x)
      for (int64_t c = 0; c < inputs; ++c) planes[c * kPlane + (y + 1) * kRow + x + 1] = map[y * row + x * inputs + c];
  for (int y = 0; y < 32; y += kRows)
    for (int x = 0; x < 32; x += kLanes) {
      Lanes sums[kRows][3] = {};
      const float* weights = memory.weights(program.places[0].backward);  // [inputs][3][3][3 channels]
      for (int64_t c = 0; c < inputs; ++c)
        for (int tap = 0; tap < 9; ++tap, weights += 3) {
          const float* from = planes + c * kPlane + (y + 2 - tap / 3) * kRow + x + 2 - tap % 3;
          const Lanes w0 = kept(fill(weights[0])), w1 = kept(fill(weights[1])), w2 = kept(fill(weights[2]));
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            const Lanes in = load_anywhere(from + r * kRow);
            sums[r][0] = fused(in, w0, sums[r][0]);
            sums[r][1] = fused(in, w1, sums[r][1]);
            sums[r][2] = fused(in, w2, sums[r][2]);
          }
        }
      for (int r = 0; r < kRows; ++r)
        for (int channel = 0; channel < 3; ++channel)
          __builtin_memcpy(gradient + (channel * 32 + y + r) * 32 + x, &sums[r][channel], sizeof(Lanes));
    }
}

// Mean over pixels, and the linear layer.
inline void head(const Memory& memory, int64_t sample, float* logits) {
  const Program& program = memory.program;
  const int64_t width = program.shape.widths[2], row = program.row(2);
  const float* const map = memory.at(program.x[2]) + sample * program.map(2) + row + width;
  alignas(64) float means[1024];
  for (int64_t c = 0; c < width; c += kLanes) {
    Lanes sum = {};
    for (int y = 0; y < 8; ++y)
      for (int x = 0; x < 8; ++x) sum = sum + load(map + y * row + x * width + c);
    store(means + c, sum * fill(1.0f / 64));
  }
  const float *weights = memory.weights(program.linear), *bias = memory.weights(program.linear_bias);
  for (int64_t k = 0; k < program.shape.classes; ++k, weights += width) {
    Lanes sum = {};
    for (int64_t c = 0; c < width; c += kLanes) sum = fused(load(means + c), load(weights + c), sum);
    float total = 0;
    for (int i = 0; i < kLanes; ++i) total += sum[i];
    logits[k] = total + bias[k];
  }
}

// The gradient by the logits in place of the last map, where its ReLU let it through.
inline void head_backwards(const Memory& memory, int64_t sample, const float* by_logits) {
  const Program& program = memory.program;
  const int64_t width = program.shape.widths[2], row = program.row(2);
  float* const map = memory.at(program.x[2]) + sample * program.map(2) + row + width;
  const Bits* const bits = memory.bits((int)program.plan.size() - 1, sample);
  const float* const weights = memory.weights(program.linear);
  for (int64_t c = 0; c < width; c += kLanes) {
    Lanes by = {};
    for (int64_t k = 0; k < program.shape.classes; ++k)
      by = fused(fill(by_logits[k] * (1.0f / 64)), load(weights + k * width + c), by);
    for (int pixel = 0; pixel < 64; ++pixel)
      store(map + pixel / 8 * row + pixel % 8 * width + c, where(bits[(pixel * width + c) / kLanes], by));
  }
}
