// Eight registers that hold tiles of 16 rows of 64 bytes, as AMX has them: 0 to 3 hold float32 sums, 4 and 5 rows of
// activations in bf16 (pairs of consecutive inputs), 6 and 7 the weights of 32 inputs for 16 outputs: row k holds
// inputs 2k and 2k + 1 of each output. A tile of activations may have fewer rows.
//
// Two processors, one interface: AMX, and AVX512-BF16, where registers are memory and a product is 256 instructions.
// Sums are rounded in another order by each, and always in the same one.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../amx.h"
#include "program.h"

#define SMOOTHFAST_ALWAYS __attribute__((always_inline))
#define SMOOTHFAST_FORCED inline SMOOTHFAST_ALWAYS

namespace smoothfast {
namespace fused {
namespace tiles {

#if defined(SMOOTHFAST_AMX)
class AmxTiles : public AmxRegisters {
 public:
  // Sets all tiles to 0.
  void use_rows(int rows) {
    Shapes shapes;
    for (int tile = 0; tile < kTiles; ++tile) {
      shapes.row_bytes[tile] = kLine;
      shapes.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : kTileRows);
    }
    configure(shapes);
  }

  template <int sums, int activations, int weights>
  SMOOTHFAST_FORCED void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(activations), "i"(weights));
  }
};
#endif

class MemoryTiles {
 public:
  void use_rows(int rows) { rows_ = rows; }

  template <int tile>
  void zero() {
    std::memset(sums_[tile], 0, kTileBytes);
  }

  // Nothing is copied: what is at these places stays until the tile is loaded again.
  template <int tile>
  SMOOTHFAST_FORCED void load(const char* from, int64_t stride) {
    loaded_[tile - 4] = {from, stride};
  }

  template <int tile>
  void store(float* to) const {
    std::memcpy(to, sums_[tile], kTileBytes);
  }

  template <int sums, int activations, int weights>
  SMOOTHFAST_FORCED void multiply() {
    add_products(sums_[sums], loaded_[activations - 4], loaded_[weights - 4], rows_);
  }

 private:
  struct Loaded {
    const char* from;
    int64_t stride;
  };

  // Eight rows at a time: their sums and a tile of weights fill 24 of the 32 registers.
  static __attribute__((noinline)) void add_products(float* sums, Loaded activations, Loaded weights, int rows) {
    __m512i of_inputs[kTileRows];
    for (int k = 0; k < kTileRows; ++k) of_inputs[k] = _mm512_loadu_si512(weights.from + k * weights.stride);
    for (int first = 0; first < rows; first += 8) {
      const char* from = activations.from + first * activations.stride;
      __m512 sum[8];
      for (int r = 0; r < 8; ++r) sum[r] = _mm512_load_ps(sums + (first + r) * 16);
#pragma GCC unroll 16
      for (int k = 0; k < kTileRows; ++k)
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
          int32_t pair;
          std::memcpy(&pair, from + r * activations.stride + 4 * k, sizeof pair);
          sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)_mm512_set1_epi32(pair), (__m512bh)of_inputs[k]);
        }
      for (int r = 0; r < 8; ++r) _mm512_store_ps(sums + (first + r) * 16, sum[r]);
    }
  }

  alignas(64) float sums_[4][kTileBytes / sizeof(float)] = {};
  Loaded loaded_[4];
  int rows_ = kTileRows;
};

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
