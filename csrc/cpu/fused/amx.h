// The registers of AMX, which hold tiles of 16 rows of 64 bytes, and the system's leave to use them.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#define SMOOTHFAST_AMX 1  // assemblers of that age know the instructions

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace smoothfast {
namespace fused {

class AmxRegisters {
 public:
  static constexpr int kTiles = 8;

  struct alignas(64) Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };

  ~AmxRegisters() { asm volatile("tilerelease" ::: "memory"); }

  // Sets all tiles to 0.
  void configure(const Shapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }

  template <int tile>
  __attribute__((always_inline)) void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }

  template <int tile>
  __attribute__((always_inline)) void load(const char* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
  }

  template <int tile>
  __attribute__((always_inline)) void store(void* to) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(int64_t{64}), "i"(tile) : "memory");
  }
};

// The bits of CPUID that say which products there are.
constexpr int kAmxBfloat16 = 22, kAmxInt8 = 25;

inline bool amx_permitted(int products) {
  constexpr int kRequestPermission = 0x1023, kTileData = 18, kAmxTile = 24;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  // The part of a thread's state that Linux gives only to those who ask.
  return d >> kAmxTile & 1 && d >> products & 1 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace fused
}  // namespace smoothfast
#endif
