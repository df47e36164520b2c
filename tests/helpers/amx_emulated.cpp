// The fused kernels for AMX on processors that lack it: each of its instructions traps, and a handler does what Intel's
// manual says of it (Software Developer's Manual, volume 2: LDTILECFG, TDPBF16PS, TDPBSUD and so on), sums and their
// rounding in the manual's order. A condition under which the processor would fault ends the program.
// tests/runners/test_fused.py compiles this as a library.
#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/fused/integer/network.h"
#include "cpu/fused/tiles/network.h"

namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct Tile {
  int rows, row_bytes;
  alignas(64) char data[kRows][kRowBytes];
};

thread_local bool configured = false;
thread_local Tile tiles[kTiles];

enum Count { kProducts, kLoads, kStores, kZeros, kConfigurations, kCounts };
int64_t counts[kCounts];

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "AMX would fault: %s\n", what);
  std::abort();
}

Tile& tile(int index) {
  require(configured && index < kTiles && tiles[index].rows > 0 && tiles[index].row_bytes > 0, "no such tile");
  return tiles[index];
}

void configure(const unsigned char* from) {
  require(from[0] == 1, "palette is not 1");
  require(from[1] < kRows, "start row");
  require(std::all_of(from + 2, from + 16, [](unsigned char byte) { return byte == 0; }), "reserved bytes");
  for (int index = 0; index < kRows; ++index) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, from + 16 + 2 * index, sizeof row_bytes);
    const int rows = from[48 + index];
    require(index < kTiles || (rows == 0 && row_bytes == 0), "a tile beyond the last");
    require(rows <= kRows && row_bytes <= kRowBytes && (rows == 0) == (row_bytes == 0), "the shape of a tile");
    if (index < kTiles) tiles[index] = {rows, row_bytes, {}};
  }
  configured = true;
}

void load(Tile& to, const char* from, int64_t stride) {
  std::memset(to.data, 0, sizeof to.data);
  for (int row = 0; row < to.rows; ++row) std::memcpy(to.data[row], from + row * stride, to.row_bytes);
}

void store(const Tile& from, char* to, int64_t stride) {
  for (int row = 0; row < from.rows; ++row) std::memcpy(to + row * stride, from.data[row], from.row_bytes);
}

void require_shapes(const Tile& sums, const Tile& a, const Tile& b) {
  require(sums.rows == a.rows && a.row_bytes == 4 * b.rows && sums.row_bytes == b.row_bytes, "shapes of a product");
}

// Signed bytes of a times unsigned bytes of b, four of them together.
void multiply_bytes(Tile& sums, const Tile& a, const Tile& b) {
  require_shapes(sums, a, b);
  for (int row = 0; row < sums.rows; ++row)
    for (int column = 0; column < sums.row_bytes; column += 4) {
      int32_t sum;
      std::memcpy(&sum, sums.data[row] + column, sizeof sum);
      for (int k = 0; k < a.row_bytes; ++k)
        sum += static_cast<int8_t>(a.data[row][k]) * static_cast<uint8_t>(b.data[k / 4][column + k % 4]);
      std::memcpy(sums.data[row] + column, &sum, sizeof sum);
    }
}

// Sums of even and of odd inputs, each by fused multiply-adds; then both, then what was there. Denormals are 0.
__attribute__((target("avx512f"))) void multiply(Tile& sums, const Tile& a, const Tile& b) {
  require_shapes(sums, a, b);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x1F80 | _MM_FLUSH_ZERO_ON | 0x40);
  const auto columns = static_cast<__mmask16>((1 << b.row_bytes / 4) - 1);
  const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
  for (int row = 0; row < sums.rows; ++row) {
    __m512 of_even = _mm512_setzero_ps(), of_odd = of_even;
    for (int k = 0; k < a.row_bytes / 4; ++k) {
      int32_t pair;
      std::memcpy(&pair, a.data[row] + 4 * k, sizeof pair);
      const __m512i left = _mm512_set1_epi32(pair), right = _mm512_maskz_loadu_epi32(columns, b.data[k]);
      of_even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(left, 16)),
                                _mm512_castsi512_ps(_mm512_slli_epi32(right, 16)), of_even);
      of_odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(left, odd)),
                               _mm512_castsi512_ps(_mm512_and_si512(right, odd)), of_odd);
    }
    const __m512 there = _mm512_maskz_loadu_ps(columns, sums.data[row]);
    _mm512_mask_storeu_ps(sums.data[row], columns, _mm512_add_ps(there, _mm512_add_ps(of_even, of_odd)));
  }
  _mm_setcsr(before);
}

// An instruction: its VEX prefix of three bytes, opcode, ModRM and what that asks for.
class Instruction {
 public:
  explicit Instruction(const greg_t* registers) : registers_(registers) {
    const auto* at = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
    known_ = at[0] == 0xC4 && (at[1] & 0x1F) == 2 && (at[2] & 0x84) == 0;  // map 0F38, W0, 128 bits
    if (!known_) return;
    const int r = ~at[1] >> 7 & 1, x = ~at[1] >> 6 & 1, b = ~at[1] >> 5 & 1;
    prefix_ = at[2] & 3;
    opcode_ = at[3];
    third = ~at[2] >> 3 & 15;
    const int mod = at[4] >> 6, low = at[4] & 7;
    first = r << 3 | (at[4] >> 3 & 7);
    in_memory = mod != 3;
    second = b << 3 | low;
    next = at + 5;
    if (!in_memory) return;
    int base = second;
    if (low == 4) {
      const int sib = *next++, index = x << 3 | (sib >> 3 & 7);
      base = b << 3 | (sib & 7);
      stride = index == 4 ? 0 : value(index) << (sib >> 6);
    }
    known_ = !(mod == 0 && (base & 7) == 5);  // relative to the instruction: no compiler has it here
    address = value(base);
    if (mod == 1) address += static_cast<signed char>(*next++);
    if (mod == 2) {
      int32_t displacement;
      std::memcpy(&displacement, next, sizeof displacement);
      address += displacement;
      next += sizeof displacement;
    }
  }

  bool is(int prefix, int opcode, bool memory) const {
    return known_ && prefix_ == prefix && opcode_ == opcode && in_memory == memory;
  }

  int first, second, third;  // registers: of ModRM, and of VEX
  bool in_memory;
  int64_t address = 0, stride = 0;
  const unsigned char* next;

 private:
  int64_t value(int index) const {
    static const int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return registers_[kOrder[index]];
  }

  const greg_t* registers_;
  bool known_ = false;
  int prefix_, opcode_;
};

bool execute(const Instruction& one) {
  enum { kNone, k66, kF3, kF2 };
  auto* memory = reinterpret_cast<char*>(one.address);
  const bool bytes = one.is(kF3, 0x5E, false);
  if (bytes || one.is(kF3, 0x5C, false)) {
    require(one.first != one.second && one.first != one.third && one.second != one.third, "a tile taken twice");
    (bytes ? multiply_bytes : multiply)(tile(one.first), tile(one.second), tile(one.third));
    ++counts[kProducts];
  } else if (one.is(kF2, 0x4B, true)) {
    load(tile(one.first), memory, one.stride);
    ++counts[kLoads];
  } else if (one.is(kF3, 0x4B, true)) {
    store(tile(one.first), memory, one.stride);
    ++counts[kStores];
  } else if (one.is(kF2, 0x49, false)) {
    std::memset(tile(one.first).data, 0, sizeof Tile::data);
    ++counts[kZeros];
  } else if (one.is(kNone, 0x49, true)) {
    configure(reinterpret_cast<unsigned char*>(memory));
    ++counts[kConfigurations];
  } else if (one.is(kNone, 0x49, false)) {
    configured = false;
  } else {
    return false;
  }
  return true;
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  bool any = false;
  while (true) {  // those that follow at once need no trap of their own
    const Instruction one(registers);
    if (!execute(one)) break;
    registers[REG_RIP] = reinterpret_cast<greg_t>(one.next);
    any = true;
  }
  require(any, "this is none of its instructions");
}

// Calls `run`, with AMX emulated where there is none.
template <class Run>
void emulating(const Run& run) {
  struct sigaction handler = {}, former;
  handler.sa_sigaction = on_illegal_instruction;
  handler.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &handler, &former);
  std::fill_n(counts, static_cast<int>(kCounts), 0);
  run();
  sigaction(SIGILL, &former, nullptr);
}

smoothfast::fused::Shape shape_of(const int64_t* shape) { return {{shape[0], shape[1], shape[2]}, shape[3], shape[4]}; }

}  // namespace

// As `tiles::run`, with AMX emulated where there is none. `executed`: products, loads, stores, zeroes and
// configurations of tiles, counted where they are emulated.
extern "C" void run_with_amx(const int64_t* shape, const char* packed, const uint16_t* replicas, int64_t samples,
                             float* logits, const int64_t* labels, float* gradients, int64_t* executed) {
  namespace kernels = smoothfast::fused::tiles;
  emulating([&] {
    kernels::run(shape_of(shape), packed, replicas, samples, logits, labels, gradients, kernels::Processor::amx);
  });
  std::copy_n(counts, static_cast<int>(kCounts), executed);
}

// As `integer::run`.
extern "C" void run_integers_with_amx(const int64_t* shape, const char* packed, const int16_t* replicas,
                                      int64_t samples, float* logits, int64_t* executed) {
  namespace kernels = smoothfast::fused::integer;
  emulating([&] { kernels::run(shape_of(shape), packed, replicas, samples, logits, kernels::Processor::amx); });
  std::copy_n(counts, static_cast<int>(kCounts), executed);
}
