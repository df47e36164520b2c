#include "network.h"

#include "../isa.h"
#include "integer/network.h"
#include "tiles/network.h"
#include "tiles/pack.h"
#include "tiles/program.h"
#include "winograd/network.h"

namespace smoothfast {
namespace fused {

namespace {

bool by_tiles(Arithmetic arithmetic) { return arithmetic == Arithmetic::amx || arithmetic == Arithmetic::avx512_bf16; }

winograd::Numbers numbers_of(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::winograd_bf16    ? winograd::Numbers::bf16
         : arithmetic == Arithmetic::winograd_mixed ? winograd::Numbers::mixed
                                                    : winograd::Numbers::fp32;
}

// Its integers are computed on the processor that the arithmetic names.
integer::Processor processor_of(Arithmetic arithmetic) {
  return static_cast<integer::Processor>(static_cast<int>(arithmetic) - static_cast<int>(Arithmetic::int8_amx));
}

bool allowed(Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::int8_scalar) return true;
  const bool wide = arithmetic == Arithmetic::int8_amx || arithmetic == Arithmetic::int8_avx512_vnni;
  return wide ? active_isa() == Isa::avx512 : active_isa() != Isa::scalar;
}

}  // namespace

std::vector<Arithmetic> arithmetics() {
  std::vector<Arithmetic> found;
  const bool tiles = active_isa() == Isa::avx512;
  for (tiles::Processor one : tiles::processors())
    if (tiles && one == tiles::Processor::amx) found.push_back(Arithmetic::amx);
  for (Arithmetic one : {Arithmetic::winograd_bf16, Arithmetic::winograd_mixed, Arithmetic::winograd_fp32})
    if (winograd::available(numbers_of(one))) found.push_back(one);
  for (tiles::Processor one : tiles::processors())
    if (tiles && one == tiles::Processor::avx512_bf16) found.push_back(Arithmetic::avx512_bf16);
  for (Arithmetic one : {Arithmetic::int8_amx, Arithmetic::int8_avx512_vnni, Arithmetic::int8_avx_vnni,
                         Arithmetic::int8_avx2, Arithmetic::int8_scalar})
    if (allowed(one) && integer::available(processor_of(one))) found.push_back(one);
  return found;
}

const char* arithmetic_name(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::amx:
      return "amx";
    case Arithmetic::avx512_bf16:
      return "avx512_bf16";
    case Arithmetic::winograd_bf16:
      return "winograd_bf16";
    case Arithmetic::winograd_mixed:
      return "winograd_mixed";
    case Arithmetic::int8_amx:
      return "int8_amx";
    case Arithmetic::int8_avx512_vnni:
      return "int8_avx512_vnni";
    case Arithmetic::int8_avx_vnni:
      return "int8_avx_vnni";
    case Arithmetic::int8_avx2:
      return "int8_avx2";
    case Arithmetic::int8_scalar:
      return "int8_scalar";
    default:
      return "winograd_fp32";
  }
}

const char* refusal(Arithmetic arithmetic, const Shape& shape) {
  return by_tiles(arithmetic) ? tiles::refusal(shape) : refusal(shape);
}

bool in_integers(Arithmetic arithmetic) { return arithmetic >= Arithmetic::int8_amx; }

Dtype replicas_of(Arithmetic arithmetic) {
  if (in_integers(arithmetic)) return Dtype::i16;
  return arithmetic == Arithmetic::winograd_fp32 ? Dtype::f32 : Dtype::bf16;
}

int64_t packed_bytes(Arithmetic arithmetic, const Shape& shape, bool gradients) {
  if (in_integers(arithmetic)) return integer::packed_bytes(shape);
  const auto bytes = [&](const auto& program) { return gradients ? program.packed_backward : program.packed; };
  return by_tiles(arithmetic) ? bytes(tiles::program_of(shape))
                              : bytes(winograd::program_of(shape, numbers_of(arithmetic)));
}

void pack(Arithmetic arithmetic, const Shape& shape, const std::vector<Parameters>& parameters, const float* linear,
          const float* linear_bias, bool gradients, char* packed) {
  if (by_tiles(arithmetic))
    tiles::pack(tiles::program_of(shape), parameters, linear, linear_bias, gradients, packed);
  else
    winograd::pack(shape, numbers_of(arithmetic), parameters, linear, linear_bias, gradients, packed);
}

void run(Arithmetic arithmetic, const Shape& shape, const char* packed, const char* replicas, int64_t samples,
         float* logits, const int64_t* labels, float* gradients) {
  if (in_integers(arithmetic))
    integer::run(shape, packed, reinterpret_cast<const int16_t*>(replicas), samples, logits, processor_of(arithmetic));
  else if (by_tiles(arithmetic))
    tiles::run(shape, packed, reinterpret_cast<const uint16_t*>(replicas), samples, logits, labels, gradients,
               arithmetic == Arithmetic::amx ? tiles::Processor::amx : tiles::Processor::avx512_bf16);
  else
    winograd::run(shape, numbers_of(arithmetic), packed, replicas, samples, logits, labels, gradients);
}

}  // namespace fused
}  // namespace smoothfast
