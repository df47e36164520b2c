// The body of the network, included once per instruction set: weights into lanes, and samples through the stages.
#define ALWAYS __attribute__((always_inline))
#define FORCED inline ALWAYS
#define NOT_INLINED __attribute__((noinline))

namespace smoothfast {
namespace fused {
namespace winograd {
namespace ISA_NAMESPACE {
namespace {

#include "ends_kernel.h"
#include "pack_kernel.h"

// Samples through the stages. A stage takes the samples of its own, group after group of the stage before: what is
// `first` counts from the first sample of the last stage, for which masks are kept.
template <class Number, bool kKeeps>
void blocks_forwards(const Memory& memory, int stage, int64_t first, int count) {
  const Program& program = memory.program;
  for (int layer = 0; layer < (int)program.plan.size(); ++layer) {
    const Layer& of = program.plan[layer];
    const Place& place = program.places[layer];
    if (of.stage != stage || of.stride == 2) continue;
    if (of.part == Part::first)
      convolve<Number, Finish::relu, false, kKeeps>(memory, stage, program.x[stage], program.h[stage], count,
                                                    place.weights, place.bias, layer, first);
    if (of.part == Part::second)
      convolve<Number, Finish::relu, true, kKeeps>(memory, stage, program.h[stage], program.x[stage], count,
                                                   place.weights, place.bias, layer, first);
  }
}

template <class Number>
void blocks_backwards(const Memory& memory, int stage, int64_t first, int count) {
  const Program& program = memory.program;
  for (int layer = (int)program.plan.size() - 1; layer > 0; --layer) {
    const Layer& of = program.plan[layer];
    const Place& place = program.places[layer];
    if (of.stage != stage || of.stride == 2) continue;
    if (of.part == Part::second)
      convolve<Number, Finish::masked, false, false>(memory, stage, program.x[stage], program.h[stage], count,
                                                     place.backward, -1, layer - 1, first);
    if (of.part == Part::first)
      convolve<Number, Finish::masked, true, false>(memory, stage, program.h[stage], program.x[stage], count,
                                                    place.backward, -1, layer - 1, first);
  }
}

template <class Number, bool kKeeps>
void down(const Memory& memory, int stage, int64_t first, int64_t at, int count) {
  const Program& program = memory.program;
  const int layer = program.first_of_stage(stage) + 1;
  for (int sample = 0; sample < count; ++sample) {
    const float* from = memory.at(program.x[stage - 1]) + sample * program.map(stage - 1);
    const int64_t to = (at + sample) * program.map(stage);
    Bits* bits = memory.bits(layer, first + sample);
    convolve_down<Number, Finish::relu, kKeeps>(memory, layer, from, memory.at(program.h[stage]) + to, bits);
    convolve_down<Float32, Finish::linear, false>(memory, layer - 1, from, memory.at(program.x[stage]) + to, bits);
  }
}

template <class Number>
void up(const Memory& memory, int stage, int64_t first, int64_t at, int count) {
  const Program& program = memory.program;
  const int layer = program.first_of_stage(stage) + 1;
  for (int sample = 0; sample < count; ++sample) {
    const int64_t from = (at + sample) * program.map(stage);
    convolve_up<Number>(memory, layer, memory.at(program.h[stage]) + from, memory.at(program.x[stage]) + from,
                        memory.at(program.x[stage - 1]) + sample * program.map(stage - 1),
                        memory.bits(layer - 2, first + sample));
  }
}

// Calls `by` with the numbers of a layer.
template <class By>
void with_numbers(const Memory& memory, int layer, const By& by) {
#if defined(PRODUCTS_OF_BF16)
  if (memory.program.places[layer].bf16) return by(BFloat16());
#endif
  by(Float32());
}

template <bool kKeeps>
void forwards(const Memory& memory, int stage, const char* replicas, int64_t first, int count) {
  const int begin = memory.program.first_of_stage(stage);
  if (stage == 0) {
    with_numbers(memory, 0, [&](auto number) {
      using Stored = typename decltype(number)::Stored;
      convolve_image<decltype(number), kKeeps>(memory, (const Stored*)replicas + first * kImageElements, first);
    });
  }
  for (int64_t at = 0; stage > 0 && at < count; at += kSamples[stage - 1]) {
    const int group = std::min<int>(kSamples[stage - 1], count - (int)at);
    forwards<kKeeps>(memory, stage - 1, replicas, first + at, group);
    with_numbers(memory, begin + 1,
                 [&](auto number) { down<decltype(number), kKeeps>(memory, stage, first + at, at, group); });
  }
  with_numbers(memory, begin + 1,
               [&](auto number) { blocks_forwards<decltype(number), kKeeps>(memory, stage, first, count); });
}

void backwards(const Memory& memory, int stage, int64_t first, int count, float* gradients) {
  const int begin = memory.program.first_of_stage(stage);
  with_numbers(memory, begin + 1,
               [&](auto number) { blocks_backwards<decltype(number)>(memory, stage, first, count); });
  if (stage == 0) to_image(memory, gradients + first * kImageElements);
  for (int64_t at = 0; stage > 0 && at < count; at += kSamples[stage - 1]) {
    const int group = std::min<int>(kSamples[stage - 1], count - (int)at);
    with_numbers(memory, begin + 1, [&](auto number) { up<decltype(number)>(memory, stage, first + at, at, group); });
    backwards(memory, stage - 1, first + at, group, gradients);
  }
}

// Samples, at most those of the last stage, to logits; and to gradients where labels are given.
void run(const Program& program, const char* packed, char* arena, const char* replicas, int count, float* logits,
         const int64_t* labels, float* gradients) {
  const Memory memory = {program, packed, arena};
  const int64_t classes = program.shape.classes;
  labels ? forwards<true>(memory, 2, replicas, 0, count) : forwards<false>(memory, 2, replicas, 0, count);
  std::vector<float> by(classes);
  for (int sample = 0; sample < count; ++sample) {
    head(memory, sample, logits + sample * classes);
    if (!labels) continue;
    by_logits(logits + sample * classes, classes, labels[sample], by.data());
    head_backwards(memory, sample, by.data());
  }
  if (labels) backwards(memory, 2, 0, count, gradients);
}

const Kernels kernels = {run, pack};

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace winograd
}  // namespace fused
}  // namespace smoothfast

#undef ALWAYS
#undef FORCED
#undef NOT_INLINED
