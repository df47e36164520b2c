// The op that packs a fused network in integers. Its numbers come from files of others: all that the kernels rely on is
// checked here, above all that no sum overflows.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "../../fused/mma/arithmetics.h"
#include "../../fused/mma/integers.h"
#include "integer/network.h"
#include "network.h"

namespace smoothfast {

namespace {

using namespace fused;

constexpr const char* kOp = "fused_pack_integers";
constexpr int64_t kMostOfImage = 4095, kSumOfImage = 65535;  // 65535 times 2^15 is below 2^31
constexpr int64_t kPair = 128;                               // 255 times it is below 2^15
constexpr int64_t kMost = 255, kMostOfPixels = 64 * kMost;   // of a map, and of its sums
constexpr int64_t kMostMultiplier = 127, kMostShift = 24;
constexpr int64_t kEnd = int64_t{1} << 31;               // of sums
constexpr float kMostScale = 0.5f, kMostBias = 1 << 29;  // a sum times a scale, plus a bias, is below 2^31

void check_tensor(const at::Tensor& tensor, const char* name, int64_t i, at::ScalarType type, at::IntArrayRef sizes) {
  TORCH_CHECK(tensor.scalar_type() == type && tensor.sizes() == sizes, kOp, ": ", name, "[", i, "] must be ", type, " ",
              sizes, ", not ", tensor.scalar_type(), " ", tensor.sizes());
}

// Numbers of a tensor, contiguous and of this type, within limits; NaN is not.
template <class Number>
void check_range(const at::Tensor& tensor, const char* name, int64_t i, Number least, Number most) {
  const auto* numbers = tensor.const_data_ptr<Number>();
  for (int64_t n = 0; n < tensor.numel(); ++n)
    TORCH_CHECK(numbers[n] >= least && numbers[n] <= most, kOp, ": ", name, "[", i, "] has ", +numbers[n],
                "; its numbers must lie in ", +least, " .. ", +most);
}

template <class Number>
int64_t sum_of_magnitudes(const Number* numbers, int64_t count) {
  int64_t sum = 0;
  for (int64_t n = 0; n < count; ++n) sum += std::abs(int64_t{numbers[n]});
  return sum;
}

// For each output.
template <class Number>
std::vector<int64_t> sums_of_magnitudes(const at::Tensor& weights) {
  const int64_t of_an_output = weights.numel() / weights.size(0);
  std::vector<int64_t> sums;
  for (int64_t o = 0; o < weights.size(0); ++o)
    sums.push_back(sum_of_magnitudes(weights.const_data_ptr<Number>() + o * of_an_output, of_an_output));
  return sums;
}

void check_pairs(const at::Tensor& weights, int64_t i) {
  const auto* numbers = weights.const_data_ptr<int8_t>();
  const int64_t inputs = weights.size(1), taps = weights.size(2) * weights.size(3);
  for (int64_t pair = 0; pair < weights.size(0) * inputs / 2; ++pair)
    for (int64_t n = 2 * pair * taps; n < (2 * pair + 1) * taps; ++n)
      TORCH_CHECK(std::abs(numbers[n]) + std::abs(numbers[n + taps]) <= kPair, kOp, ": weights[", i, "] has ",
                  +numbers[n], " and ", +numbers[n + taps],
                  " for two inputs that are added in 16 bits; their magnitudes "
                  "must not exceed ",
                  kPair, " together");
}

// All lists of a network, contiguous.
struct Lists {
  std::vector<at::Tensor> weights, scales, biases, multipliers, shifts;
};

void check_image(const Lists& lists) {
  check_range<int16_t>(lists.weights[0], "weights", 0, -kMostOfImage, kMostOfImage);
  for (int64_t sum : sums_of_magnitudes<int16_t>(lists.weights[0]))
    TORCH_CHECK(sum <= kSumOfImage, kOp, ": weights[0] has an output whose magnitudes add up to ", sum,
                "; it must be at most ", kSumOfImage);
}

// That no sum of the last layer of a block overflows.
void check_sums(const Lists& lists, int64_t i, bool shortcut) {
  const std::vector<int64_t> own = sums_of_magnitudes<int8_t>(lists.weights[i]);
  const std::vector<int64_t> beside =
      shortcut ? sums_of_magnitudes<int8_t>(lists.weights[i - 2]) : std::vector<int64_t>();
  for (size_t o = 0; o < own.size(); ++o) {
    const int64_t by = shortcut ? beside[o] : lists.multipliers[i].const_data_ptr<int8_t>()[o];
    const int64_t most = kMost * own[o] + (kMost * by << lists.shifts[i].const_data_ptr<int32_t>()[o]);
    TORCH_CHECK(most < kEnd, kOp, ": weights[", i, "] and shifts[", i, "] let a sum of output ", o, " reach ", most,
                "; it must be below 2^31");
  }
}

// Shapes and types of the tensors of a layer, empty ones too.
void check_tensors(const Lists& lists, const Plan& plan, int64_t i) {
  const Layer& layer = plan[i];
  const bool image = layer.part == Part::image, shortcut = layer.part == Part::shortcut;
  const bool adds = layer.part == Part::second, multiplies = adds && plan[i - 2].part != Part::shortcut;
  const int64_t scaled = shortcut ? 0 : layer.outputs;
  check_tensor(lists.weights[i], "weights", i, image ? at::kShort : at::kChar,
               {layer.outputs, layer.inputs, layer.size, layer.size});
  check_tensor(lists.scales[i], "scales", i, at::kFloat, {scaled});
  if (image)
    check_tensor(lists.biases[i], "biases", i, at::kFloat, {3, 3, layer.outputs});
  else
    check_tensor(lists.biases[i], "biases", i, at::kFloat, {scaled});
  check_tensor(lists.multipliers[i], "multipliers", i, at::kChar, {multiplies ? layer.outputs : 0});
  check_tensor(lists.shifts[i], "shifts", i, at::kInt, {adds ? layer.outputs : 0});
}

void check_layer(const Lists& lists, const Plan& plan, int64_t i) {
  check_tensors(lists, plan, i);
  const float least = std::nextafter(0.0f, 1.0f);
  check_range<float>(lists.scales[i], "scales", i, least, kMostScale);
  check_range<float>(lists.biases[i], "biases", i, -kMostBias, kMostBias);
  check_range<int8_t>(lists.multipliers[i], "multipliers", i, 0, kMostMultiplier);
  check_range<int32_t>(lists.shifts[i], "shifts", i, 0, kMostShift);
  if (plan[i].part == Part::image) return check_image(lists);
  check_pairs(lists.weights[i], i);
  if (plan[i].part == Part::second) check_sums(lists, i, plan[i - 2].part == Part::shortcut);
}

void check_head(const at::Tensor& linear, const at::Tensor& bias, double unit) {
  const std::vector<int64_t> sums = sums_of_magnitudes<int16_t>(linear);
  for (size_t k = 0; k < sums.size(); ++k) {
    const int64_t most = kMostOfPixels * sums[k] + std::abs(int64_t{bias.const_data_ptr<int32_t>()[k]});
    TORCH_CHECK(most < kEnd, kOp, ": linear[", k, "] and linear_bias[", k, "] let a logit reach ", most,
                "; it must be below 2^31");
  }
  const auto single = static_cast<float>(unit);
  TORCH_CHECK(single > 0 && std::isfinite(single), kOp, ": unit must be positive and finite in float32, not ", unit);
}

// Whether an arithmetic is one of GPUs. Any may be packed for, also where it does not run.
bool is_of_gpus(c10::string_view name) {
  for (Arithmetic one : {Arithmetic::int8_amx, Arithmetic::int8_avx512_vnni, Arithmetic::int8_avx_vnni,
                         Arithmetic::int8_avx2, Arithmetic::int8_scalar})
    if (name == arithmetic_name(one)) return false;
  const mma::Arithmetic* found = mma::arithmetic_of(name);
  TORCH_CHECK(found && found->integers, kOp, ": arithmetic is '", name, "', which is none in integers");
  return true;
}

// The shape of a network whose lists and linear layer are long enough to have one.
Shape checked_shape(const Lists& lists, const at::Tensor& linear, const at::Tensor& linear_bias, bool for_gpus) {
  const size_t count = lists.weights.size();
  TORCH_CHECK(count >= 9 && (count - 3) % 6 == 0, kOp, ": there must be 3 + 6n weights, not ", count);
  for (const auto* list : {&lists.scales, &lists.biases, &lists.multipliers, &lists.shifts})
    TORCH_CHECK(list->size() == count, kOp, ": there must be ", count,
                " of weights, scales, biases, multipliers and shifts each, not ", list->size());
  TORCH_CHECK(linear.dim() == 2 && linear.scalar_type() == at::kShort, kOp, ": linear must be int16 [K, C], not ",
              linear.scalar_type(), " ", linear.sizes());
  TORCH_CHECK(linear_bias.scalar_type() == at::kInt && (linear_bias.sizes() == at::IntArrayRef{linear.size(0)}), kOp,
              ": linear_bias must be int32 [", linear.size(0), "], not ", linear_bias.scalar_type(), " ",
              linear_bias.sizes());
  const auto blocks = static_cast<int64_t>(count - 3) / 6;
  for (int64_t i : {int64_t{0}, 2 * blocks + 1})
    TORCH_CHECK(lists.weights[i].dim() == 4, kOp, ": weights[", i, "] must have four dimensions, not ",
                lists.weights[i].sizes());
  const Shape shape = {
      {lists.weights[0].size(0), lists.weights[2 * blocks + 1].size(0), linear.size(1)}, blocks, linear.size(0)};
  const char* refused = for_gpus ? mma::refusal(shape, true) : refusal(shape);
  TORCH_CHECK(!*refused, kOp, ": ", refused, "; widths are ", shape.widths[0], ", ", shape.widths[1], ", ",
              shape.widths[2], ", blocks ", blocks, ", classes ", shape.classes);
  return shape;
}

std::vector<at::Tensor> contiguous(at::TensorList tensors) {
  std::vector<at::Tensor> all;
  for (const at::Tensor& tensor : tensors) all.push_back(tensor.contiguous());
  return all;
}

at::Tensor fused_pack_integers_cpu(at::TensorList weights, at::TensorList scales, at::TensorList biases,
                                   at::TensorList multipliers, at::TensorList shifts, const at::Tensor& linear,
                                   const at::Tensor& linear_bias, double unit, c10::string_view arithmetic) {
  const bool for_gpus = is_of_gpus(arithmetic);
  const Lists lists = {contiguous(weights), contiguous(scales), contiguous(biases), contiguous(multipliers),
                       contiguous(shifts)};
  const Shape shape = checked_shape(lists, linear, linear_bias, for_gpus);
  const Plan plan = plan_of(shape);
  for (size_t i = 0; i < plan.size(); ++i) check_layer(lists, plan, static_cast<int64_t>(i));
  const at::Tensor last = linear.contiguous(), last_bias = linear_bias.contiguous();
  check_head(last, last_bias, unit);
  std::vector<integer::Numbers> layers;
  for (size_t i = 0; i < plan.size(); ++i)
    layers.push_back({lists.weights[i].const_data_ptr(), lists.scales[i].const_data_ptr<float>(),
                      lists.biases[i].const_data_ptr<float>(), lists.multipliers[i].const_data_ptr<int8_t>(),
                      lists.shifts[i].const_data_ptr<int32_t>()});
  const int64_t bytes = for_gpus ? mma::integers::packed_bytes(shape) : integer::packed_bytes(shape);
  at::Tensor packed = at::empty({bytes}, linear.options().dtype(at::kByte));
  (for_gpus ? mma::integers::pack : integer::pack)(shape, layers, last.const_data_ptr<int16_t>(),
                                                   last_bias.const_data_ptr<int32_t>(), static_cast<float>(unit),
                                                   reinterpret_cast<char*>(packed.mutable_data_ptr<uint8_t>()));
  return packed;
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CPU, m) { m.impl("fused_pack_integers", fused_pack_integers_cpu); }

}  // namespace smoothfast
