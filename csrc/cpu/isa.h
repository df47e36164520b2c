// Instruction sets of the CPU kernels: one source body, compiled for each, chosen at run time (see each_isa.inc).
#pragma once

#include <string>

namespace smoothfast {

enum class Isa { scalar, avx2, avx512 };

constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512};

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);

// The one in use: the best that the processor has, or what SMOOTHFAST_CPU=scalar|avx2|avx512 asks for.
Isa active_isa();
void use_isa(const std::string& name);

}  // namespace smoothfast
