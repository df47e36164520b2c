// How tensor cores take a CIFAR ResNet of widths 16, 32 and 64: places in the shared memory of a block, and the order
// of weights. Host and device: for packers, kernels and their tests.
#pragma once

#include "../../rules/arithmetic.h"
#include "../plan.h"

namespace smoothfast {
namespace fused {
namespace mma {

constexpr int kWarps = 8;               // of a block
constexpr int kChunk = 16;              // bytes: a row of a matrix that ldmatrix loads
constexpr int kWidth = 16;              // of the first stage, or twice as much; and that doubles with each stage
constexpr int kOutputs = 16;            // of a fragment: two matrices of 8, for one lane two pairs of neighbours
constexpr int kFragment = 32 * kChunk;  // bytes, those of a lane together
constexpr int kImagePixel = 8;          // bytes: three numbers of 16 bits, and one that has no weight
constexpr int kImageRow = 34 * kImagePixel;
constexpr int kImageBytes = (34 * kImageRow + kImagePixel + kChunk - 1) / kChunk * kChunk;

// A map of a stage, of numbers of so many bytes: rows of pixels, with rows of zeros above and below. A column of zeros
// is the right end of a row and the left end of the next.
template <int NUMBER, int STAGE, int WIDTH = kWidth>
struct Map {
  static constexpr int kSize = 32 >> STAGE, kChannels = WIDTH << STAGE;
  static constexpr int kPixel = NUMBER * kChannels, kChunks = kPixel / kChunk, kRow = (kSize + 1) * kPixel;
  static constexpr int kBytes = (kSize + 2) * kRow + kPixel;
};

// The chunks of a pixel are exchanged by its column such that the rows of a matrix, 8 pixels next to each other or
// every second one, lie in different banks; and so do the 4 bytes a lane that fragments of outputs are stored as.
template <class M>
SMOOTHFAST_INLINE constexpr uint32_t swizzled(uint32_t x, uint32_t chunk) {
  if (M::kChunks == 1) return 0;
  if (M::kChunks == 2) return chunk ^ (x >> 2 & 1);
  if (M::kChunks == 4) return chunk ^ ((x & 2) | (x >> 2 & 1));
  return chunk ^ ((x & 3) << 1 | (x >> 2 & 1));
}

// Bytes from the first pixel of a row, which is zeros, to a chunk of its pixel x.
template <class M>
SMOOTHFAST_INLINE constexpr uint32_t place(uint32_t x, uint32_t chunk) {
  return x * M::kPixel + swizzled<M>(x, chunk) * kChunk;
}

// Where a sample has its maps, in two regions: x, what goes into a block and comes out of it; h, what is between its
// convolutions. The image lies where h of the first stage will be.
template <int NUMBER, int WIDTH = kWidth>
struct Places {
  static constexpr int kRegion = Map<NUMBER, 0, WIDTH>::kBytes, kSecond = 2 * Map<NUMBER, 1, WIDTH>::kBytes;
  static constexpr int kOfLast = Map<NUMBER, 2, WIDTH>::kBytes;
  static constexpr int kImage = kRegion, kSample = kRegion + kSecond;
  static_assert(kSecond >= kRegion && kSecond >= kImageBytes && 2 * kOfLast <= kRegion, "");
  static_assert(kRegion % kChunk == 0 && kSecond % kChunk == 0, "");

  static SMOOTHFAST_INLINE constexpr int h(int stage) { return stage == 2 ? 0 : kRegion; }
  static SMOOTHFAST_INLINE constexpr int x(int stage) {
    return stage == 0 ? 0 : stage == 1 ? kRegion + kSecond / 2 : kOfLast;
  }
};

// A step of products takes this many inputs.
template <int NUMBER>
constexpr int kInputs = 32 / NUMBER;

// A fragment is a step for 16 outputs: [32 lanes][2 matrices][2 halves of the inputs][4 bytes]. The output and the
// input of a number in it:
constexpr int output_of(int lane, int matrix) { return lane / 8 * 4 + 2 * matrix + lane / 4 % 2; }

template <int NUMBER>
constexpr int input_of(int lane, int half, int element) {
  return kInputs<NUMBER> / 2 * half + 4 / NUMBER * (lane % 4) + element;
}

// Packs a fragment whose numbers are weight(output, input).
template <class Number, class Weight>
Number* pack_fragment(const Weight& weight, Number* to) {
  constexpr int kNumber = sizeof(Number);
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 2; ++matrix)
      for (int half = 0; half < 2; ++half)
        for (int element = 0; element < 4 / kNumber; ++element)
          *to++ = weight(output_of(lane, matrix), input_of<kNumber>(lane, half, element));
  return to;
}

// Calls `by` with the number of each layer of a plan but shortcuts, with its record, and with where that begins;
// returns where the last one ends. RECORD_OF(part, stage, changes) knows how long a record is; a shortcut is part of
// that of the second layer of its block.
template <auto RECORD_OF, class By>
int64_t each_record(const Plan& plan, const By& by) {
  int64_t at = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    if (plan[i].part == Part::shortcut) continue;
    const size_t before = plan[i].part == Part::second ? 2 : 1;
    const bool changes = i >= before && plan[i - before].part == Part::shortcut;
    const auto record = RECORD_OF(plan[i].part, plan[i].stage, changes);
    by(i, record, at);
    at += record.bytes;
  }
  return at;
}

// Whether a network has widths of 32, 64 and 128.
inline bool is_wide(const Shape& shape) { return shape.widths[0] == 2 * kWidth; }

// Empty, or why these kernels do not take a shape.
inline const char* refusal(const Shape& shape, bool integers) {
  const char* refused = fused::refusal(shape);
  if (*refused) return refused;
  const int64_t first = !integers && is_wide(shape) ? 2 * kWidth : kWidth;
  for (int stage = 0; stage < 3; ++stage)
    if (shape.widths[stage] != first << stage)
      return integers ? "on GPUs widths must be 16, 32, 64" : "on GPUs widths must be 16, 32, 64 or 32, 64, 128";
  return "";
}

}  // namespace mma
}  // namespace fused
}  // namespace smoothfast
