#include "plan.h"

namespace smoothfast {
namespace fused {

Plan plan_of(const Shape& shape) {
  Plan plan = {{Part::image, 0, 3, shape.widths[0], 3, 1}};
  for (int stage = 0; stage < 3; ++stage)
    for (int64_t block = 0; block < shape.blocks; ++block) {
      const int64_t inputs = plan.back().outputs, outputs = shape.widths[stage];
      const bool changes = stage > 0 && block == 0;
      if (changes) plan.push_back({Part::shortcut, stage, inputs, outputs, 1, 2});
      plan.push_back({Part::first, stage, inputs, outputs, 3, changes ? 2 : 1});
      plan.push_back({Part::second, stage, outputs, outputs, 3, 1});
    }
  return plan;
}

const char* refusal(const Shape& shape) {
  if (shape.blocks < 1 || shape.blocks > 200) return "there must be 1 to 200 blocks in a stage";
  if (shape.classes < 1 || shape.classes > 1 << 16) return "there must be 1 to 65,536 classes";
  for (int64_t width : shape.widths)
    if (width < 1 || width > 1024 || width % 16) return "widths must be multiples of 16";
  return "";
}

std::vector<float> folded_weights(const Layer& layer, const Parameters& parameters) {
  const int64_t of_an_output = layer.inputs * layer.size * layer.size;
  std::vector<float> weights(layer.outputs * of_an_output);
  for (int64_t output = 0; output < layer.outputs; ++output)
    for (int64_t i = output * of_an_output; i < (output + 1) * of_an_output; ++i)
      weights[i] = static_cast<float>(parameters.weights[i] * parameters.gain[output]);
  return weights;
}

}  // namespace fused
}  // namespace smoothfast
