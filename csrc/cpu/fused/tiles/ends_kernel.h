// The ends of a network: replicas to the image that the first convolution reads, the last map to logits, and gradients
// by logits, by the last map and by images.
#pragma once

#include "convolution_kernel.h"

namespace smoothfast {
namespace fused {
namespace tiles {

// Rows of replicas, bf16 [32][32][3], into the image with its fourth channel and its halo, which are 0.
inline void expand(const uint16_t* replica, char* image) {
  alignas(kLine) static const uint16_t kFour[32] = {0,  1,  2,  31, 3,  4,  5,  31, 6,  7,  8,  31, 9,  10, 11, 31,
                                                    12, 13, 14, 31, 15, 16, 17, 31, 18, 19, 20, 31, 21, 22, 23, 31};
  const __m512i four = _mm512_load_si512(kFour);
  for (int row = 0; row < 32; ++row)
    for (int first = 0; first < 32; first += 8) {
      const __m512i three = _mm512_maskz_loadu_epi16(0xFFFFFF, replica + (32 * row + first) * 3);
      _mm512_storeu_si512(image + (row + 1) * kImageRow + (first + 1) * kImagePixel,
                          _mm512_permutexvar_epi16(four, three));
    }
}

// Of the last map, 8x8.
inline char* last_pixel(const Memory& memory, int sample, int row, int column) {
  const Program& program = memory.program;
  const int64_t pair = 10 * program.last_row, half = program.last_pixel / 2;
  return memory.arena + program.buffers[kX3] + sample / 2 * pair + (row + 1) * program.last_row +
         (column + 1) * program.last_pixel + sample % 2 * half;
}

// Mean over pixels, and the linear layer.
inline void head(const Memory& memory, int sample, float* logits) {
  const Program& program = memory.program;
  const int64_t width = program.shape.widths[2];
  float means[1024] = {};
  for (int row = 0; row < 8; ++row)
    for (int column = 0; column < 8; ++column) {
      const char* pixel = last_pixel(memory, sample, row, column);
      for (int64_t c = 0; c < width; c += kFloats) {
        const __m512 values = widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel + 2 * c)));
        _mm512_storeu_ps(means + c, _mm512_add_ps(_mm512_loadu_ps(means + c), values));
      }
    }
  const auto* weights = reinterpret_cast<const float*>(memory.packed + program.linear);
  const auto* bias = reinterpret_cast<const float*>(memory.packed + program.linear_bias);
  for (int64_t k = 0; k < program.shape.classes; ++k) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < width; c += kFloats)
      sum = _mm512_fmadd_ps(_mm512_loadu_ps(means + c), _mm512_loadu_ps(weights + k * width + c), sum);
    logits[k] = _mm512_reduce_add_ps(sum) * (1.0f / 64) + bias[k];
  }
}

// The gradient by the logits in place of the last map, where its ReLU let it through.
inline void head_backwards(const Memory& memory, int sample, const float* by_logits) {
  const Program& program = memory.program;
  const int64_t width = program.shape.widths[2];
  const auto* weights = reinterpret_cast<const float*>(memory.packed + program.linear);
  for (int64_t c = 0; c < width; c += 2 * kFloats) {
    __m512 low = _mm512_setzero_ps(), high = low;
    for (int64_t k = 0; k < program.shape.classes; ++k) {
      const __m512 by = _mm512_set1_ps(by_logits[k] * (1.0f / 64));
      low = _mm512_fmadd_ps(by, _mm512_loadu_ps(weights + k * width + c), low);
      high = _mm512_fmadd_ps(by, _mm512_loadu_ps(weights + k * width + c + kFloats), high);
    }
    const __m512i gradient = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column) {
        char* pixel = last_pixel(memory, sample, row, column) + 2 * c;
        const __mmask32 on = _mm512_cmpgt_epi16_mask(_mm512_loadu_si512(pixel), _mm512_setzero_si512());
        _mm512_storeu_si512(pixel, _mm512_maskz_mov_epi16(on, gradient));
      }
  }
}

// The first convolution backwards: sums of a tile are [16 rows][rows of the image][4 channels][pixels], to [3][32][32].
template <int kPixels, class Tiles>
void to_images(Tiles& tiles, const Convolution& c, const Memory& memory, int live, float* gradients) {
  const int steps = static_cast<int>(c.steps.size());
  constexpr int kRows = 4 / kPixels;
  Sums sums;
  tiles.use_rows(kTileRows);
  for (int sample = 0; sample < live; ++sample)
    for (int group = 0; group < c.groups; ++group) {
      const char* in =
          memory.arena + memory.program.buffers[c.in.buffer] + c.in.start + sample * c.in.sample + group * c.in.group;
      tiles.template zero<0>();
      tiles.template zero<2>();
      for (int step = 0; step < steps; ++step) {
        tiles.template load<4>(in + c.steps[step].offset, c.in.odd);
        tiles.template load<6>(memory.packed + c.tiles + step * kTileBytes, kLine);
        tiles.template multiply<0, 4, 6>();
        tiles.template load<5>(in + c.steps[step].offset + c.in.second, c.in.odd);
        tiles.template multiply<2, 5, 6>();
      }
      tiles.template store<0>(sums.tile(0, 0));
      tiles.template store<2>(sums.tile(1, 0));
      for (int part = 0; part < 2; ++part)
        for (int row = 0; row < kRows; ++row)
          for (int channel = 0; channel < 3; ++channel) {
            const int y = 4 * group + (kPixels == 2 ? 2 * part : 0) + row, x = kPixels == 2 ? 0 : 16 * part;
            const float* from = sums.tile(part, 0) + (4 * row + channel) * kPixels;
            float* to = gradients + ((sample * 3 + channel) * 32 + y) * 32 + x;
            for (int i = 0; i < kTileRows; ++i) std::memcpy(to + i * kPixels, from + i * kFloats, kPixels * sizeof *to);
          }
    }
}

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
