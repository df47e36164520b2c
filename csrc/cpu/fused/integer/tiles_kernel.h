// Convolutions of maps of 16 samples by AMX: 16 outputs of weights times 16 samples of inputs, which lie in a map as a
// tile has them. A row of a tile of sums is a vector of sums, and what becomes of them is as without tiles.
//
// A group has four tiles of sums. They are stored one by one between the first products of the next group (theirs are
// long done then: AMX takes 52 cycles for one, and begins one every 16), and finished between the others.

constexpr int kTileOfSums = kTileOutputs * VECTOR_BYTES, kTileOfWeights = kTileOutputs * kTileBytes;

class Tiles : public AmxRegisters {
 public:
  // 0 to 3 hold sums, 4 and 5 weights of so many groups of inputs, 6 and 7 these inputs. Sets all to 0.
  void use_groups(int64_t groups) {
    Shapes shapes;
    for (int tile = 0; tile < kTiles; ++tile) {
      shapes.rows[tile] = (uint8_t)(tile < 6 ? kTileOutputs : groups);
      shapes.row_bytes[tile] = (uint16_t)(tile < 4 || tile >= 6 ? VECTOR_BYTES : groups * kGroup);
    }
    configure(shapes);
  }

  // Weights are signed, inputs are not.
  template <int sums, int weights, int inputs>
  FORCED void multiply() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(weights), "i"(inputs));
  }
};

// Finishes the sums of groups of 4 / kWide pixels side by side, [pixels][kWide tiles of outputs]: four outputs of all
// pixels at a time.
template <int kWide, bool kAdds>
struct Finisher {
  static constexpr int kParts = 4 * kWide, kPixels = 4 / kWide;
  const Memory& memory;
  const Convolution& c;
  const char* const sums;
  int left = 0;  // parts
  const char *from, *scale, *bias;
  char* out;
  FourBeside beside;

  FORCED void begin(int64_t y, int64_t x, int64_t output) {
    left = kParts;
    from = sums;
    scale = memory.packed + c.scale + output * 4;
    bias = memory.packed + c.bias + output * 4;
    out = pixel_of(memory, c.out, y, x) + output / kGroup * VECTOR_BYTES;
    if (kAdds) beside = FourBeside(memory, c.beside, y, x, output);
  }

  FORCED void advance(int parts) {
    for (; parts > 0 && left > 0; --parts, --left) {
      finish();
      from += 4 * VECTOR_BYTES;
      scale += 16;
      bias += 16;
      out += VECTOR_BYTES;
      if (kAdds) beside.advance();
    }
  }

  FORCED void finish() const {
    Lanes values[kPixels][4] = {};
    if (kAdds) begin_beside(values, beside);
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 4
      for (int o = 0; o < 4; ++o) values[p][o] += load(from + p * kWide * kTileOfSums + o * VECTOR_BYTES);
    const Affine by(scale, bias);
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) store(out + p * c.out.pixel, quantised(values[p], by));
  }
};

// Adds a product to sums; where it is the first of a group, those of the former one are stored.
template <bool kFirst, int sums, int weights, int inputs>
FORCED void add_product(Tiles& tiles, char* former) {
  if (kFirst) {
    tiles.store<sums>(former + sums * kTileOfSums);
    tiles.zero<sums>();
  }
  tiles.multiply<sums, weights, inputs>();
}

// The products of a step, for the four tiles of a group. Loading a tile takes half the time of one.
template <int kWide, bool kFirst>
FORCED void take_step(Tiles& tiles, const char* inputs, int64_t pixel, const char* weights, int64_t next_weights,
                      char* former) {
  tiles.load<4>(weights, kTileBytes);
  tiles.load<6>(inputs, VECTOR_BYTES);
  add_product<kFirst, 0, 4, 6>(tiles, former);
  if (kWide == 2) {
    tiles.load<5>(weights + next_weights, kTileBytes);
    add_product<kFirst, 1, 5, 6>(tiles, former);
    tiles.load<7>(inputs + pixel, VECTOR_BYTES);
    add_product<kFirst, 2, 4, 7>(tiles, former);
    add_product<kFirst, 3, 5, 7>(tiles, former);
  } else {
    tiles.load<7>(inputs + pixel, VECTOR_BYTES);
    add_product<kFirst, 1, 4, 7>(tiles, former);
    tiles.load<6>(inputs + 2 * pixel, VECTOR_BYTES);
    add_product<kFirst, 2, 4, 6>(tiles, former);
    tiles.load<7>(inputs + 3 * pixel, VECTOR_BYTES);
    add_product<kFirst, 3, 4, 7>(tiles, former);
  }
}

// Outputs from `output` to `end`, kWide tiles of them at a time.
template <int kWide, bool kAdds>
NOT_INLINED void convolve_outputs(Tiles& tiles, const Memory& memory, const Convolution& c, int64_t output,
                                  int64_t end) {
  using Finishing = Finisher<kWide, kAdds>;
  const int64_t steps = c.steps(), step_bytes = c.step_groups() * VECTOR_BYTES, pixel = c.stride * c.in.pixel;
  const int64_t next_weights = 3 * steps * kTileOfWeights;
  alignas(64) char sums[4 * kTileOfSums];
  Finishing finisher = {memory, c, sums};
  for (; output < end; output += kWide * kTileOutputs)
    for (int64_t y = 0; y < c.size; ++y) {
      const int64_t first = y == 0 ? 1 : 0, last = c.stride == 1 && y == c.size - 1 ? 2 : 3;
      const int pace = (int)((Finishing::kParts - 1) / ((last - first) * steps - 1)) + 1;
      const char* of_row = memory.packed + c.tiles + (output / kTileOutputs * 3 + first) * steps * kTileOfWeights;
      for (int64_t x = 0; x < c.size; x += Finishing::kPixels) {
        const char *in = pixel_of(memory, c.in, y * c.stride + first - 1, x * c.stride - 1), *weights = of_row;
        take_step<kWide, true>(tiles, in, pixel, weights, next_weights, sums);
        for (int64_t ky = first, step = 1; ky < last; ++ky, in += c.in.row, step = 0)
          for (; step < steps; ++step) {
            weights += kTileOfWeights;
            take_step<kWide, false>(tiles, in + step * step_bytes, pixel, weights, next_weights, sums);
            finisher.advance(pace);
          }
        finisher.begin(y, x, output);
      }
    }
  tiles.store<0>(sums);
  tiles.store<1>(sums + kTileOfSums);
  tiles.store<2>(sums + 2 * kTileOfSums);
  tiles.store<3>(sums + 3 * kTileOfSums);
  finisher.advance(Finishing::kParts);
}

void convolve_tiles(Tiles& tiles, const Memory& memory, const Convolution& c) {
  const int64_t in_pairs = c.outputs / (2 * kTileOutputs) * 2 * kTileOutputs;
  tiles.use_groups(c.step_groups());
  const bool adds = c.part == Part::second;
  (adds ? convolve_outputs<2, true> : convolve_outputs<2, false>)(tiles, memory, c, 0, in_pairs);
  (adds ? convolve_outputs<1, true> : convolve_outputs<1, false>)(tiles, memory, c, in_pairs, c.outputs);
}
