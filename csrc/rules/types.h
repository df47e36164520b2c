// The types that kernels write.
#pragma once

namespace smoothfast {

enum class Output { f32, bf16, f16 };

}  // namespace smoothfast
