#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace smoothfast {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "scalar";
  }
}

bool isa_supported(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd") && isa_supported(Isa::avx2);
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    default:
      return true;
  }
#else
  return isa == Isa::scalar;
#endif
}

namespace {

Isa parse(const std::string& name) {
  for (Isa isa : kIsas) {
    if (name != isa_name(isa)) continue;
    if (!isa_supported(isa)) throw std::runtime_error("SMOOTHFAST_CPU is " + name + ", which this processor lacks");
    return isa;
  }
  throw std::runtime_error("SMOOTHFAST_CPU is '" + name + "'; it must be scalar, avx2 or avx512");
}

Isa initial() {
  if (const char* name = std::getenv("SMOOTHFAST_CPU")) return parse(name);
  Isa best = Isa::scalar;
  for (Isa isa : kIsas)
    if (isa_supported(isa)) best = isa;
  return best;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{initial()};
  return isa;
}

}  // namespace

Isa active_isa() { return current(); }

void use_isa(const std::string& name) { current() = parse(name); }

}  // namespace smoothfast
