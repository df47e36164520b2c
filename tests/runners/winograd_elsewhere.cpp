// A small network by Winograd's algorithm against plain loops in double, on processors for which there is no torch
// here: cross-compiled, and run by an emulator. Prints "same", or says what differs.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "cpu/fused/winograd/network.h"

using namespace smoothfast::fused;

namespace {

constexpr int kSamples = 3, kSteps = 6;
const Shape kShape = {{16, 32, 48}, 1, 5};

double uniform() {  // in -1 .. 1
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 40) / (1 << 23) - 1;
}

struct Weights {
  std::vector<float> weights;
  std::vector<double> gain, bias;
};

struct Map {
  int64_t channels, size;
  std::vector<double> values;  // [channels][size][size]

  double at(int64_t c, int64_t y, int64_t x) const {
    return y < 0 || x < 0 || y >= size || x >= size ? 0 : values[(c * size + y) * size + x];
  }
};

Map convolved(const Map& in, const Layer& layer, const Weights& w) {
  Map out = {layer.outputs, in.size / layer.stride, {}};
  for (int64_t o = 0; o < layer.outputs; ++o)
    for (int64_t y = 0; y < out.size; ++y)
      for (int64_t x = 0; x < out.size; ++x) {
        double sum = 0;
        for (int64_t i = 0; i < layer.inputs; ++i)
          for (int tap = 0; tap < layer.size * layer.size; ++tap)
            sum += w.weights[(o * layer.inputs + i) * layer.size * layer.size + tap] *
                   in.at(i, y * layer.stride + tap / layer.size - layer.size / 2,
                         x * layer.stride + tap % layer.size - layer.size / 2);
        out.values.push_back(sum * w.gain[o] + (layer.part == Part::shortcut ? 0 : w.bias[o]));
      }
  return out;
}

Map passed(Map map, const Map* added) {
  for (size_t i = 0; i < map.values.size(); ++i)
    map.values[i] = std::fmax(0, map.values[i] + (added ? added->values[i] : 0));
  return map;
}

std::vector<double> logits_of(const Map& image, const Plan& plan, const std::vector<Weights>& all,
                              const std::vector<float>& linear) {
  Map x = passed(convolved(image, plan[0], all[0]), nullptr);
  for (size_t i = 1; i < plan.size(); i += 2) {
    const bool changes = plan[i].part == Part::shortcut;
    const Map beside = changes ? convolved(x, plan[i], all[i]) : x;
    i += changes;
    const Map h = passed(convolved(x, plan[i], all[i]), nullptr);
    x = passed(convolved(h, plan[i + 1], all[i + 1]), &beside);
  }
  std::vector<double> logits;
  for (int64_t k = 0; k < kShape.classes; ++k) {
    double sum = 0;
    for (size_t i = 0; i < x.values.size(); ++i) sum += linear[k * x.channels + i / 64] * x.values[i] / 64;
    logits.push_back(sum);
  }
  return logits;
}

double cross_entropy(const std::vector<double>& logits, int64_t label) {
  double total = 0;
  for (double logit : logits) total += std::exp(logit - logits[label]);
  return std::log(total);
}

bool near(const char* what, double found, double wanted, double most) {
  if (std::fabs(found - wanted) <= most) return true;
  std::printf("%s is %g, and %g is right\n", what, found, wanted);
  return false;
}

}  // namespace

int main() {
  const Plan plan = plan_of(kShape);
  std::vector<Weights> all;
  std::vector<Parameters> parameters;
  for (const Layer& layer : plan) {
    Weights w;
    const double scale = std::sqrt(2.0 / (layer.inputs * layer.size * layer.size));
    for (int64_t i = 0; i < layer.outputs * layer.inputs * layer.size * layer.size; ++i)
      w.weights.push_back(static_cast<float>(scale * uniform()));
    for (int64_t o = 0; o < layer.outputs; ++o) w.gain.push_back(1 + uniform() / 4), w.bias.push_back(uniform() / 4);
    all.push_back(w);
  }
  for (const Weights& w : all) parameters.push_back({w.weights.data(), w.gain.data(), w.bias.data()});
  std::vector<float> linear(kShape.classes * kShape.widths[2]), bias(kShape.classes);
  for (float& value : linear) value = static_cast<float>(uniform());
  const winograd::Program& program = winograd::program_of(kShape, winograd::Numbers::fp32);
  alignas(64) static char packed[1 << 22];
  if (program.packed_backward > static_cast<int64_t>(sizeof packed)) return std::puts("packed is too small"), 1;
  winograd::pack(kShape, winograd::Numbers::fp32, parameters, linear.data(), bias.data(), true, packed);

  std::vector<float> replicas(kSamples * kImageElements), logits(kSamples * kShape.classes), gradients(replicas.size());
  for (float& value : replicas) value = static_cast<float>(uniform());
  const std::vector<int64_t> labels = {0, 4, 2};
  winograd::run(kShape, winograd::Numbers::fp32, packed, reinterpret_cast<const char*>(replicas.data()), kSamples,
                logits.data(), labels.data(), gradients.data());
  bool same = true;
  for (int sample = 0; sample < kSamples; ++sample) {
    Map image = {3, 32, std::vector<double>(kImageElements)};
    for (int i = 0; i < kImageElements; ++i) image.values[i % 3 * 1024 + i / 3] = replicas[sample * kImageElements + i];
    const std::vector<double> wanted = logits_of(image, plan, all, linear);
    for (int64_t k = 0; k < kShape.classes; ++k)
      same &= near("a logit", logits[sample * kShape.classes + k], wanted[k], 1e-5);
    for (int step = 0; sample == 0 && step < kSteps; ++step) {  // by differences, away from the borders of a ReLU
      const int at = (step * 523 + 37) % kImageElements;
      double either[2];
      for (int side = 0; side < 2; ++side) {
        Map moved = image;
        moved.values[at] += side ? 1e-6 : -1e-6;
        either[side] = cross_entropy(logits_of(moved, plan, all, linear), labels[sample]);
      }
      same &= near("a gradient", gradients[at], (either[1] - either[0]) / 2e-6, 1e-5);
    }
  }
  if (same) std::puts("same");
  return same ? 0 : 1;
}
