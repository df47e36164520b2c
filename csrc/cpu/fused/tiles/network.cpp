#include "network.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../../isa.h"
#include "../amx.h"
#include "../arena.h"
#include "../loss.h"
#include "program.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2,prefer-vector-width=512")
#endif
#include "network_kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace smoothfast {
namespace fused {
namespace tiles {

namespace {

thread_local Arena arena;

}  // namespace

const std::vector<Processor>& processors() {
  static const std::vector<Processor> found = [] {
    std::vector<Processor> all;
    __builtin_cpu_init();
    if (!isa_supported(Isa::avx512) || !__builtin_cpu_supports("avx512bf16")) return all;
#if defined(SMOOTHFAST_AMX)
    if (amx_permitted(kAmxBfloat16)) all.push_back(Processor::amx);
#endif
    all.push_back(Processor::avx512_bf16);
    return all;
  }();
  return found;
}

namespace {

// Calls `by` with the kernels for a processor, as a value of their type.
template <class By>
void dispatch(Processor on, const By& by) {
#if defined(SMOOTHFAST_AMX)
  if (on == Processor::amx) return by(static_cast<AmxTiles*>(nullptr));
#endif
  by(static_cast<MemoryTiles*>(nullptr));
}

}  // namespace

void run(const Shape& shape, const char* packed, const uint16_t* replicas, int64_t samples, float* logits,
         const int64_t* labels, float* gradients, Processor on) {
  const Program& program = program_of(shape);
  const Memory memory = {program, packed, arena.of(&program, program.arena)};
  dispatch(on, [&](auto* tiles) {
    const auto ignore = [](const Convolution*) {};
    for (int64_t first = 0; first < samples; first += program.samples) {
      const int live = static_cast<int>(std::min<int64_t>(program.samples, samples - first));
      run<std::remove_pointer_t<decltype(tiles)>>(memory, replicas + first * kImageElements, live,
                                                  logits + first * shape.classes, labels ? labels + first : nullptr,
                                                  labels ? gradients + first * kImageElements : nullptr, ignore);
    }
  });
}

Profile profile(const Shape& shape, const char* packed, Processor on, int repeats) {
  const Program& program = program_of(shape);
  const Memory memory = {program, packed, arena.of(&program, program.arena)};
  Profile found = {0.0, program.samples, {}};
  for (const auto* list : {&program.forward, &program.backward})
    for (const Convolution& c : *list)
      found.layers.push_back({c.weight, c.transposed, products(c, program.samples), 0.0});
  std::vector<uint16_t> replicas(program.samples * kImageElements);
  for (size_t i = 0; i < replicas.size(); ++i)  // between 0.5 and 2, of both signs
    replicas[i] = static_cast<uint16_t>(0x3F00 + i * 40503 % 256 + (i * 2654435761 >> 9 & 1) * 0x8000);
  std::vector<float> logits(program.samples * shape.classes), gradients(program.samples * kImageElements);
  const std::vector<int64_t> labels(program.samples, 0);
  dispatch(on, [&](auto* tiles) {
    using Tiles = std::remove_pointer_t<decltype(tiles)>;
    for (int repeat = 0; repeat < repeats; ++repeat) {
      size_t layer = 0;
      double began = seconds();
      run<Tiles>(memory, replicas.data(), program.samples, logits.data(), labels.data(), gradients.data(),
                 [&](const Convolution* c) {
                   const double now = seconds();
                   if (c) found.layers[layer++].seconds += (now - began) / repeats;
                   began = now;
                 });
      found.product_seconds += product_seconds<Tiles>(packed) / repeats;
    }
  });
  return found;
}

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
#else

namespace smoothfast {
namespace fused {
namespace tiles {

const std::vector<Processor>& processors() {
  static const std::vector<Processor> none;
  return none;
}

void run(const Shape&, const char*, const uint16_t*, int64_t, float*, const int64_t*, float*, Processor) {}

Profile profile(const Shape&, const char*, Processor, int) { return {}; }

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
#endif

namespace smoothfast {
namespace fused {
namespace tiles {

const char* processor_name(Processor processor) { return processor == Processor::amx ? "amx" : "avx512_bf16"; }

}  // namespace tiles
}  // namespace fused
}  // namespace smoothfast
