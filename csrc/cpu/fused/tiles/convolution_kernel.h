// A micro-batch through a network, forwards and backwards; included once, compiled for both kinds of tiles.
//
// A convolution runs in groups of four tiles of sums, [two parts][two tiles of weights]. The sums of a group are stored
// one by one between the first products of the next (their last product is long done then: AMX takes 52 cycles for one,
// and begins one every 16), and finished line by line between the others. Every second group takes its steps backwards,
// so that the weights used last, still in L1, come first.
#include "registers.h"

namespace smoothfast {
namespace fused_network {

constexpr int kFloats = kLine / sizeof(float);

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The sums of a group. Even and odd pixels are read with a distance of one, so there are lines around them.
struct Sums {
  static constexpr int kOdd = (kTileRows + 2) * kFloats, kPart = kOdd + kTileRows * kFloats;
  alignas(kLine) float values[2 * kPart] = {};

  float* tile(int part, int tile) { return values + part * kPart + tile * kOdd; }
};

SMOOTHFAST_FORCED __m512 widened(__m256i bfloat16s) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16s), 16));
}

// A line of a group: 32 sums, and the 64 bytes that they become.
struct Line {
  int32_t sums, place, mask;  // bytes: from the first sum of a group, its first output, and the first bits of that
  uint32_t on;                // which are pixels: the halo stays 0
};

// The lines of a group. On a map of pairs a line is an odd pixel and the even one after it.
struct Lines {
  static constexpr int64_t kPerMask = 16;  // bytes of outputs, for one of masks
  static constexpr int kMost = 2 * (kTileRows + 1);
  Line all[2 * kMost];  // with room for steps beyond the last line
  int count = 0;

  Lines(const Side& side, int of_a_part, bool parities) {
    for (int part = 0; part < 2; ++part)
      for (int line = 0; line < of_a_part; ++line) {
        const int64_t place = part * side.second + (line >> 1) * side.even + (line & 1) * side.odd;
        const uint32_t on = !parities ? ~0u : line == 0 ? ~0u << 16 : line == kTileRows ? ~0u >> 16 : ~0u;
        all[count++] = {static_cast<int32_t>((part * Sums::kPart + line * kFloats) * sizeof(float)),
                        static_cast<int32_t>(place), static_cast<int32_t>(place / kPerMask), on};
      }
  }
};

// Finishes sums: a bias, what is there already, ReLU or the mask of one, and bf16.
template <Finish finish, bool kAdds, bool kKeepsMask, bool kParities>
struct Finisher {
  const char* const sums;
  __m512 bias[2] = {};
  char *out = nullptr, *mask = nullptr;  // of the group
  const Line *next = nullptr, *end = nullptr;

  SMOOTHFAST_FORCED void begin(const Lines& lines, char* to, char* bits) {
    out = to;
    mask = bits;
    next = lines.all;
    end = next + lines.count;
  }

  SMOOTHFAST_FORCED void advance(int64_t most) {
    const Line* const stop = std::min(next + most, end);
    for (; next != stop; ++next) finish_line(*next);
  }

  SMOOTHFAST_FORCED void finish_line(const Line& line) {
    constexpr int64_t kOdd = Sums::kOdd * sizeof(float);
    const char* from = sums + line.sums;
    char* to = out + line.place;
    __m512 low = _mm512_load_ps(from + (kParities ? kOdd - kLine : 0));
    __m512 high = _mm512_load_ps(from + (kParities ? 0 : kOdd));
    if (finish == Finish::relu) {
      low = _mm512_add_ps(low, bias[kParities ? 1 : 0]);
      high = _mm512_add_ps(high, bias[kParities ? 0 : 1]);
    }
    if (kAdds) {
      low = _mm512_add_ps(low, widened(_mm256_load_si256(reinterpret_cast<const __m256i*>(to))));
      high = _mm512_add_ps(high, widened(_mm256_load_si256(reinterpret_cast<const __m256i*>(to) + 1)));
    }
    if (finish == Finish::relu) {  // NaN, as the second operand, stays
      low = _mm512_max_ps(_mm512_setzero_ps(), low);
      high = _mm512_max_ps(_mm512_setzero_ps(), high);
    }
    __m512i values = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    if (kParities) values = _mm512_maskz_mov_epi16(line.on, values);
    if (finish == Finish::masked || kKeepsMask) {
      auto* bits = reinterpret_cast<__mmask32*>(mask + line.mask);
      if (kKeepsMask) _store_mask32(bits, _mm512_cmpgt_epi16_mask(values, _mm512_setzero_si512()));
      if (finish == Finish::masked) values = _mm512_maskz_mov_epi16(_load_mask32(bits), values);
    }
    _mm512_store_si512(to, values);
  }
};

// Stores the sums of the last group, and begins those of the next.
template <int tile, class Tiles>
SMOOTHFAST_FORCED void begin(Tiles& tiles, Sums& sums) {
  tiles.template store<tile>(sums.tile(tile / 2, tile % 2));
  tiles.template zero<tile>();
}

template <class Tiles>
void store_all(Tiles& tiles, Sums& sums) {
  tiles.template store<0>(sums.tile(0, 0));
  tiles.template store<1>(sums.tile(0, 1));
  tiles.template store<2>(sums.tile(1, 0));
  tiles.template store<3>(sums.tile(1, 1));
}

// The part of a network that all micro-batches share, and the memory of one.
struct Memory {
  const Plan& plan;
  const char* packed;
  char* arena;
};

template <class Tiles, Finish finish, bool kAdds, bool kKeepsMask, bool kParities>
void convolve(Tiles& tiles, const Convolution& c, const Memory& memory) {
  constexpr int64_t kWeights = 2 * kTileBytes;  // of a step
  const int64_t last = static_cast<int64_t>(c.steps.size()) - 1, samples = memory.plan.samples / c.per_sample;
  const char* const from = memory.arena + memory.plan.buffers[c.in.buffer] + c.in.start;
  char* const buffer = memory.arena + memory.plan.buffers[c.out.buffer];
  const Lines lines(c.out, kParities ? kTileRows + 1 : c.tile_rows, kParities);
  const int64_t pace = last > 0 ? (lines.count + 4 * last - 1) / (4 * last) : lines.count;
  Sums sums;
  Finisher<finish, kAdds, kKeepsMask, kParities> finisher = {reinterpret_cast<const char*>(sums.values)};
  tiles.use_rows(c.tile_rows);
  for (int pair = 0; pair < c.pairs_of_tiles; ++pair) {
    const char* const weights = memory.packed + c.tiles + pair * (last + 1) * kWeights;
    if (finish == Finish::relu)
      for (int half = 0; half < 2; ++half)
        finisher.bias[half] = _mm512_loadu_ps(memory.packed + c.bias + (2 * pair + half) * kLine);
    finisher.next = finisher.end;  // there is no group yet

    const auto take = [&](auto first_of_group, const char* inputs, const char* tile) SMOOTHFAST_ALWAYS {
      constexpr bool kFirst = decltype(first_of_group)::value;
      tiles.template load<4>(inputs, c.in.odd);
      tiles.template load<6>(tile, kLine);
      if constexpr (kFirst) begin<0>(tiles, sums);
      tiles.template multiply<0, 4, 6>();
      if constexpr (!kFirst) finisher.advance(pace);
      tiles.template load<7>(tile + kTileBytes, kLine);
      if constexpr (kFirst) begin<1>(tiles, sums);
      tiles.template multiply<1, 4, 7>();
      if constexpr (!kFirst) finisher.advance(pace);
      tiles.template load<5>(inputs + c.in.second, c.in.odd);
      if constexpr (kFirst) begin<2>(tiles, sums);
      tiles.template multiply<2, 5, 6>();
      if constexpr (!kFirst) finisher.advance(pace);
      if constexpr (kFirst) begin<3>(tiles, sums);
      tiles.template multiply<3, 5, 7>();
      if constexpr (!kFirst) finisher.advance(pace);
    };

    for (int64_t sample = 0; sample < samples; ++sample)
      for (int64_t group = 0; group < c.groups; ++group) {
        const char* const in = from + sample * c.in.sample + group * c.in.group;
        const int64_t turn = group & 1 ? -1 : 1, first = group & 1 ? last : 0;
        const Step* step = c.steps.data() + first;
        const char* tile = weights + first * kWeights;
        take(std::true_type(), in + step->offset, tile);
        for (int64_t left = last; left > 0; --left) {
          step += turn;
          tile += turn * kWeights;
          take(std::false_type(), in + step->offset, tile);
        }
        finisher.advance(lines.count);
        const int64_t out = c.out.start + pair * kLine + sample * c.out.sample + group * c.out.group;
        finisher.begin(lines, buffer + out, memory.arena + c.mask + out / Lines::kPerMask);
      }
    store_all(tiles, sums);
    finisher.advance(lines.count);
  }
}

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
  const Plan& plan = memory.plan;
  const int64_t pair = 10 * plan.last_row, half = plan.last_pixel / 2;
  return memory.arena + plan.buffers[kX3] + sample / 2 * pair + (row + 1) * plan.last_row +
         (column + 1) * plan.last_pixel + sample % 2 * half;
}

// Mean over pixels, and the linear layer.
inline void head(const Memory& memory, int sample, float* logits) {
  const Plan& plan = memory.plan;
  const int64_t width = plan.shape.widths[2];
  float means[1024] = {};
  for (int row = 0; row < 8; ++row)
    for (int column = 0; column < 8; ++column) {
      const char* pixel = last_pixel(memory, sample, row, column);
      for (int64_t c = 0; c < width; c += kFloats) {
        const __m512 values = widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel + 2 * c)));
        _mm512_storeu_ps(means + c, _mm512_add_ps(_mm512_loadu_ps(means + c), values));
      }
    }
  const auto* weights = reinterpret_cast<const float*>(memory.packed + plan.linear);
  const auto* bias = reinterpret_cast<const float*>(memory.packed + plan.linear_bias);
  for (int64_t k = 0; k < plan.shape.classes; ++k) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < width; c += kFloats)
      sum = _mm512_fmadd_ps(_mm512_loadu_ps(means + c), _mm512_loadu_ps(weights + k * width + c), sum);
    logits[k] = _mm512_reduce_add_ps(sum) * (1.0f / 64) + bias[k];
  }
}

// The gradient by the logits in place of the last map, where its ReLU let it through.
inline void head_backwards(const Memory& memory, int sample, const float* by_logits) {
  const Plan& plan = memory.plan;
  const int64_t width = plan.shape.widths[2];
  const auto* weights = reinterpret_cast<const float*>(memory.packed + plan.linear);
  for (int64_t c = 0; c < width; c += 2 * kFloats) {
    __m512 low = _mm512_setzero_ps(), high = low;
    for (int64_t k = 0; k < plan.shape.classes; ++k) {
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

// The gradient of the cross-entropy of a class by the logits: softmax minus one, the class as minus the others.
inline void by_logits(const float* logits, int64_t classes, int64_t label, float* gradient) {
  float largest = logits[0], total = 0, others = 0;
  for (int64_t k = 1; k < classes; ++k) largest = std::max(largest, logits[k]);
  for (int64_t k = 0; k < classes; ++k) total += gradient[k] = std::exp(logits[k] - largest);
  for (int64_t k = 0; k < classes; ++k) {
    gradient[k] /= total;
    if (k != label) others += gradient[k];
  }
  gradient[label] = -others;
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
          memory.arena + memory.plan.buffers[c.in.buffer] + c.in.start + sample * c.in.sample + group * c.in.group;
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

template <class Tiles, bool kKeepsMasks>
void forwards(Tiles& tiles, const Convolution& c, const Memory& memory) {
  const bool parities = c.columns == Columns::parities;
  if (c.finish == Finish::linear)
    convolve<Tiles, Finish::linear, false, false, false>(tiles, c, memory);
  else if (c.adds)
    parities ? convolve<Tiles, Finish::relu, true, kKeepsMasks, true>(tiles, c, memory)
             : convolve<Tiles, Finish::relu, true, kKeepsMasks, false>(tiles, c, memory);
  else
    parities ? convolve<Tiles, Finish::relu, false, kKeepsMasks, true>(tiles, c, memory)
             : convolve<Tiles, Finish::relu, false, kKeepsMasks, false>(tiles, c, memory);
}

template <class Tiles>
void backwards(Tiles& tiles, const Convolution& c, const Memory& memory, int live, float* gradients) {
  const bool parities = c.columns == Columns::parities;
  if (c.columns == Columns::image)
    c.channels_per_pixel == 16 ? to_images<2>(tiles, c, memory, live, gradients)
                               : to_images<1>(tiles, c, memory, live, gradients);
  else if (c.finish == Finish::linear)
    parities ? convolve<Tiles, Finish::linear, false, false, true>(tiles, c, memory)
             : convolve<Tiles, Finish::linear, false, false, false>(tiles, c, memory);
  else if (c.adds)
    parities ? convolve<Tiles, Finish::masked, true, false, true>(tiles, c, memory)
             : convolve<Tiles, Finish::masked, true, false, false>(tiles, c, memory);
  else
    parities ? convolve<Tiles, Finish::masked, false, false, true>(tiles, c, memory)
             : convolve<Tiles, Finish::masked, false, false, false>(tiles, c, memory);
}

// Replicas of a micro-batch, `live` of them, to logits; and to gradients where labels are given. `done` is told of each
// convolution.
template <class Tiles, class Done>
void run(const Memory& memory, const uint16_t* replicas, int live, float* logits, const int64_t* labels,
         float* gradients, const Done& done) {
  const int64_t classes = memory.plan.shape.classes;
  Tiles tiles;
  for (int sample = 0; sample < live; ++sample)
    expand(replicas + sample * 3 * 32 * 32, memory.arena + memory.plan.buffers[kImage] + sample * kImageBytes);
  done(nullptr);
  for (const Convolution& c : memory.plan.forward) {
    labels ? forwards<Tiles, true>(tiles, c, memory) : forwards<Tiles, false>(tiles, c, memory);
    done(&c);
  }
  std::vector<float> by(classes);
  for (int sample = 0; sample < live; ++sample) {
    head(memory, sample, logits + sample * classes);
    if (!labels) continue;
    by_logits(logits + sample * classes, classes, labels[sample], by.data());
    head_backwards(memory, sample, by.data());
  }
  done(nullptr);
  if (!labels) return;
  for (const Convolution& c : memory.plan.backward) {
    backwards(tiles, c, memory, live, gradients);
    done(&c);
  }
}

// Seconds of a product of tiles where nothing else is to do.
template <class Tiles>
double product_seconds(const char* weights) {
  constexpr int kRounds = 1000;
  Tiles tiles;
  tiles.use_rows(kTileRows);
  tiles.template load<4>(weights, kLine);
  tiles.template load<5>(weights, kLine);
  tiles.template load<6>(weights, kLine);
  tiles.template load<7>(weights, kLine);
  const double began = seconds();
  for (int round = 0; round < kRounds; ++round) {
    tiles.template multiply<0, 4, 6>();
    tiles.template multiply<1, 4, 7>();
    tiles.template multiply<2, 5, 6>();
    tiles.template multiply<3, 5, 7>();
  }
  return (seconds() - began) / (4 * kRounds);
}

}  // namespace fused_network
}  // namespace smoothfast
