// Networks of several shapes through the fused kernels, forwards and backwards, on AVX512-BF16 and on AMX, emulated
// where there is none, and in integers on every processor, for sanitizers to watch. Replicas, packed networks and
// results are of exactly the size that they must have. tests/runners/test_fused.py compiles and runs it.
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/fused/tiles/network.h"
#include "cpu/fused/tiles/pack.h"
#include "runners/integer_network.h"

using namespace smoothfast::fused;
using namespace smoothfast::fused::tiles;

extern "C" void run_with_amx(const int64_t* shape, const char* packed, const uint16_t* replicas, int64_t samples,
                             float* logits, const int64_t* labels, float* gradients, int64_t* executed);

extern "C" void run_integers_with_amx(const int64_t* shape, const char* packed, const int16_t* replicas,
                                      int64_t samples, float* logits, int64_t* executed);

namespace {

// Whether all processors compute the same.
bool same_in_integers(const Shape& shape) {
  Random random;
  const std::vector<char> packed = packed_integers(shape, random);
  for (const int64_t rows : {1, 5, 17}) {
    const auto replicas = random.numbers<int16_t>(rows * kImageElements, 500);
    std::vector<float> logits(rows * shape.classes), again(logits.size());
    integer::run(shape, packed.data(), replicas.data(), rows, logits.data(), integer::Processor::scalar);
    for (const auto on : {integer::Processor::avx2, integer::Processor::avx_vnni, integer::Processor::avx512_vnni}) {
      if (!integer::available(on)) continue;
      integer::run(shape, packed.data(), replicas.data(), rows, again.data(), on);
      if (again != logits) return false;
    }
    if (!integer::available(integer::Processor::avx512_vnni)) continue;
    const int64_t numbers[] = {shape.widths[0], shape.widths[1], shape.widths[2], shape.blocks, shape.classes};
    int64_t executed[5];
    run_integers_with_amx(numbers, packed.data(), replicas.data(), rows, again.data(), executed);
    if (again != logits) return false;
  }
  return true;
}

}  // namespace

int main() {
  processors();  // asks for leave to use AMX: where there is one, it is not emulated
  std::mt19937 generator(0);
  std::normal_distribution<float> normal(0.0f, 0.1f);
  const auto drawn = [&](int64_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator);
    return values;
  };
  for (const Shape& shape : {Shape{{16, 32, 64}, 1, 10}, Shape{{32, 64, 96}, 1, 3}, Shape{{64, 128, 256}, 1, 1}}) {
    const Program& program = program_of(shape);
    std::vector<std::vector<float>> weights;
    std::vector<std::vector<double>> affine;
    std::vector<Parameters> parameters;
    for (const Layer& layer : plan_of(shape)) {
      weights.push_back(drawn(layer.outputs * layer.inputs * layer.size * layer.size));
      affine.emplace_back(2 * layer.outputs, 0.5);
      parameters.push_back({weights.back().data(), affine.back().data(), affine.back().data() + layer.outputs});
    }
    const auto linear = drawn(shape.classes * shape.widths[2]), linear_bias = drawn(shape.classes);
    for (const bool gradients : {false, true}) {
      std::vector<char> packed(gradients ? program.packed_backward : program.packed);
      pack(program, parameters, linear.data(), linear_bias.data(), gradients, packed.data());
      for (const int64_t rows : {1, 2, 5}) {
        const std::vector<uint16_t> replicas(rows * 3 * 32 * 32, 0x3F80);
        const std::vector<int64_t> labels(rows, 0);
        std::vector<float> logits(rows * shape.classes), by(gradients ? replicas.size() : 0);
        const int64_t* given = gradients ? labels.data() : nullptr;
        const auto same = [&] {
          for (int64_t i = shape.classes; i < rows * shape.classes; ++i)
            if (logits[i] != logits[i % shape.classes]) return false;
          return true;
        };
        run(shape, packed.data(), replicas.data(), rows, logits.data(), given, by.data(), Processor::avx512_bf16);
        if (!same()) return 1;
        const int64_t numbers[] = {shape.widths[0], shape.widths[1], shape.widths[2], shape.blocks, shape.classes};
        int64_t executed[5];
        run_with_amx(numbers, packed.data(), replicas.data(), rows, logits.data(), given, by.data(), executed);
        if (!same()) return 1;
      }
    }
  }
  integer::available(integer::Processor::amx);  // as above
  for (const Shape& shape : {Shape{{16, 32, 64}, 1, 10}, Shape{{48, 16, 80}, 1, 1}})
    if (!same_in_integers(shape)) return 1;
  std::puts("clean");
}
