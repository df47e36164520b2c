// The arithmetics of GPUs, by name. They differ in the samples that a block takes at a time, or in their numbers too.
#pragma once

#include <string_view>

namespace smoothfast {
namespace fused {
namespace mma {

struct Arithmetic {
  std::string_view name;
  bool integers;  // packed by fused_pack_integers; else in bfloat16, by fused_pack
  int samples;
};

constexpr Arithmetic kArithmetics[] = {
    {"int8_mma", true, 1}, {"int8_mma_pairs", true, 2}, {"bf16_mma", false, 1}, {"bf16_mma_pairs", false, 2}};

// Null where there is none of a name.
constexpr const Arithmetic* arithmetic_of(std::string_view name) {
  for (const Arithmetic& one : kArithmetics)
    if (one.name == name) return &one;
  return nullptr;
}

}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
