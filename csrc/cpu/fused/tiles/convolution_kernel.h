// A convolution of a micro-batch, forwards or backwards, by products of tiles.
//
// A convolution runs in groups of four tiles of sums, [two parts][two tiles of weights]. The sums of a group are stored
// one by one between the first products of the next (their last product is long done then: AMX takes 52 cycles for one,
// and begins one every 16), and finished line by line between the others. Every second group takes its steps backwards,
// so that the weights used last, still in L1, come first.
#pragma once

#include "registers.h"

namespace smoothfast {
namespace fused {
namespace tiles {

constexpr int kFloats = kLine / sizeof(float);

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
  const Program& program;
  const char* packed;
  char* arena;
};

template <class Tiles, Finish finish, bool kAdds, bool kKeepsMask, bool kParities>
void convolve(Tiles& tiles, const Convolution& c, const Memory& memory) {
  constexpr int64_t kWeights = 2 * kTileBytes;  // of a step
  const int64_t last = static_cast<int64_t>(c.steps.size()) - 1, samples = memory.program.samples / c.per_sample;
  const char* const from = memory.arena + memory.program.buffers[c.in.buffer] + c.in.start;
  char* const buffer = memory.arena + memory.program.buffers[c.out.buffer];
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

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
