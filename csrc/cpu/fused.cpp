#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "fused/network.h"

namespace smoothfast {

namespace {

using fused_network::Plan, fused_network::Processor, fused_network::Shape;

constexpr int64_t kRowsPerTask = 8;

Shape shape_of(at::IntArrayRef shape) { return {{shape[0], shape[1], shape[2]}, shape[3], shape[4]}; }

Processor processor_of(c10::string_view name) {
  for (Processor one : fused_network::processors())
    if (name == fused_network::processor_name(one)) return one;
  TORCH_CHECK(false, "fused: processor is '", name, "', which this one is not");
}

void check_fused_classes(const at::Tensor& classes, int64_t rows, int64_t count) {
  TORCH_CHECK(classes.dim() == 1 && classes.scalar_type() == at::kLong && classes.size(0) == rows,
              "fused_gradients: classes must be int64 [", rows, "], not ", classes.scalar_type(), " ", classes.sizes());
  const at::Tensor list = classes.contiguous();
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t label = list.const_data_ptr<int64_t>()[r];
    TORCH_CHECK(label >= 0 && label < count, "fused_gradients: classes[", r, "] is ", label, "; there are ", count);
  }
}

void check_fused_pack(at::TensorList weights, at::TensorList biases, const at::Tensor& linear,
                      const at::Tensor& linear_bias) {
  constexpr const char* op = "fused_pack";
  TORCH_CHECK(weights.size() >= 9 && (weights.size() - 3) % 6 == 0, op, ": there must be 3 + 6n weights, not ",
              weights.size());
  TORCH_CHECK(biases.size() == weights.size(), op, ": there must be ", weights.size(), " biases, not ", biases.size());
  const int64_t blocks = (weights.size() - 3) / 6;
  TORCH_CHECK(linear.dim() == 2 && linear.scalar_type() == at::kFloat, op, ": linear must be float32 [K, C], not ",
              linear.scalar_type(), " ", linear.sizes());
  const auto check = [&](const at::Tensor& tensor, const char* name, int64_t index, at::IntArrayRef sizes) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.sizes() == sizes, op, ": ", name, index,
                "] must be float32 ", sizes, ", not ", tensor.scalar_type(), " ", tensor.sizes());
  };
  TORCH_CHECK(linear_bias.scalar_type() == at::kFloat && (linear_bias.sizes() == at::IntArrayRef{linear.size(0)}), op,
              ": linear_bias must be float32 [", linear.size(0), "], not ", linear_bias.scalar_type(), " ",
              linear_bias.sizes());
  const std::array<int64_t, 3> widths = {weights[0].size(0), weights[2 * blocks + 1].size(0), linear.size(1)};
  const char* refused = fused_network::refusal({widths, blocks, linear.size(0)});
  TORCH_CHECK(!*refused, op, ": ", refused, "; they are ", widths[0], ", ", widths[1], ", ", widths[2]);
  int64_t index = 0, inputs = 3;
  const auto next = [&](int64_t outputs, int64_t from, int64_t size) {
    check(weights[index], "weights[", index, {outputs, from, size, size});
    check(biases[index], "biases[", index, {outputs});
    ++index;
  };
  next(widths[0], 3, 3);
  inputs = widths[0];
  for (int stage = 0; stage < 3; ++stage)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t width = widths[stage];
      if (stage > 0 && block == 0) next(width, inputs, 1);
      next(width, inputs, 3);
      next(width, width, 3);
      inputs = width;
    }
}

void check_fused(const at::Tensor& replicas, const at::Tensor& packed, at::IntArrayRef shape, bool gradients) {
  const char* op = gradients ? "fused_gradients" : "fused_logits";
  TORCH_CHECK(replicas.dim() == 4 && replicas.size(1) == 3 && replicas.size(2) == 32 && replicas.size(3) == 32 &&
                  replicas.scalar_type() == at::kBFloat16,
              op, ": replicas must be bfloat16 [R, 3, 32, 32], not ", replicas.scalar_type(), " ", replicas.sizes());
  TORCH_CHECK(shape.size() == 5, op, ": shape must be three widths, blocks and classes, not ", shape);
  const Shape network = shape_of(shape);
  const char* refused = fused_network::refusal(network);
  TORCH_CHECK(!*refused, op, ": ", refused, "; shape is ", shape);
  const Plan& plan = fused_network::planned(network);
  const bool fits = packed.numel() == plan.packed_backward || (!gradients && packed.numel() == plan.packed);
  TORCH_CHECK(packed.dim() == 1 && packed.scalar_type() == at::kByte && packed.is_contiguous() && fits, op,
              ": packed must come from fused_pack", gradients ? " with gradients" : "", ", for shape ", shape);
}

std::vector<const float*> pointers(const std::vector<at::Tensor>& tensors) {
  std::vector<const float*> all;
  for (const at::Tensor& tensor : tensors) all.push_back(tensor.const_data_ptr<float>());
  return all;
}

std::vector<at::Tensor> contiguous(at::TensorList tensors) {
  std::vector<at::Tensor> all;
  for (const at::Tensor& tensor : tensors) all.push_back(tensor.contiguous());
  return all;
}

at::Tensor fused_pack_cpu(at::TensorList weights, at::TensorList biases, const at::Tensor& linear,
                          const at::Tensor& linear_bias, bool gradients) {
  check_fused_pack(weights, biases, linear, linear_bias);
  const Shape shape = {{weights.front().size(0), weights[(weights.size() - 3) / 3 + 1].size(0), linear.size(1)},
                       static_cast<int64_t>(weights.size() - 3) / 6,
                       linear.size(0)};
  const Plan& plan = fused_network::planned(shape);
  const auto all = contiguous(weights), more = contiguous(biases);
  const at::Tensor last = linear.contiguous(), last_bias = linear_bias.contiguous();
  at::Tensor packed = at::empty({gradients ? plan.packed_backward : plan.packed}, linear.options().dtype(at::kByte));
  fused_network::pack(plan, pointers(all), pointers(more), last.const_data_ptr<float>(),
                      last_bias.const_data_ptr<float>(), gradients,
                      reinterpret_cast<char*>(packed.mutable_data_ptr<uint8_t>()));
  return packed;
}

void run(const at::Tensor& replicas, const at::Tensor& packed, const Shape& shape, Processor processor,
         at::Tensor& logits, const at::Tensor* classes, at::Tensor* gradients) {
  const at::Tensor pixels = replicas.contiguous(at::MemoryFormat::ChannelsLast);
  const auto* from = reinterpret_cast<const uint16_t*>(pixels.const_data_ptr<at::BFloat16>());
  const auto* network = reinterpret_cast<const char*>(packed.const_data_ptr<uint8_t>());
  const int64_t* labels = classes ? classes->const_data_ptr<int64_t>() : nullptr;
  float *to = logits.mutable_data_ptr<float>(), *by = gradients ? gradients->mutable_data_ptr<float>() : nullptr;
  constexpr int64_t kElements = 3 * 32 * 32;
  at::parallel_for(0, replicas.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
    fused_network::run(shape, network, from + begin * kElements, end - begin, to + begin * shape.classes,
                       labels ? labels + begin : nullptr, by ? by + begin * kElements : nullptr, processor);
  });
}

at::Tensor fused_logits_cpu(const at::Tensor& replicas, const at::Tensor& packed, at::IntArrayRef shape,
                            c10::string_view processor) {
  check_fused(replicas, packed, shape, false);
  const Shape network = shape_of(shape);
  at::Tensor logits = at::empty({replicas.size(0), network.classes}, replicas.options().dtype(at::kFloat));
  run(replicas, packed, network, processor_of(processor), logits, nullptr, nullptr);
  return logits;
}

std::tuple<at::Tensor, at::Tensor> fused_gradients_cpu(const at::Tensor& replicas, const at::Tensor& classes,
                                                       const at::Tensor& packed, at::IntArrayRef shape,
                                                       c10::string_view processor) {
  check_fused(replicas, packed, shape, true);
  const Shape network = shape_of(shape);
  check_fused_classes(classes, replicas.size(0), network.classes);
  const auto options = replicas.options().dtype(at::kFloat);
  at::Tensor logits = at::empty({replicas.size(0), network.classes}, options);
  at::Tensor gradients = at::empty(replicas.sizes(), options.memory_format(at::MemoryFormat::Contiguous));
  const at::Tensor labels = classes.contiguous();
  run(replicas, packed, network, processor_of(processor), logits, &labels, &gradients);
  return {logits, gradients};
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CPU, m) {
  m.impl("fused_pack", fused_pack_cpu);
  m.impl("fused_logits", fused_logits_cpu);
  m.impl("fused_gradients", fused_gradients_cpu);
}

}  // namespace smoothfast
