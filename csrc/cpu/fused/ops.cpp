// The ops of fused networks on CPUs: arguments checked, and rows handed out to threads.
#include "../../ops.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../../fused/mma/arithmetics.h"
#include "../../fused/mma/bf16.h"
#include "network.h"

namespace smoothfast {

namespace {

using namespace fused;

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kRowsDrawn = 32;  // 192 KiB of replicas: they stay in L2 beside the network

Shape shape_of(at::IntArrayRef shape) { return {{shape[0], shape[1], shape[2]}, shape[3], shape[4]}; }

// Of weights whose number was checked.
Shape shape_of(at::TensorList weights, const at::Tensor& linear) {
  const int64_t blocks = (weights.size() - 3) / 6;
  return {{weights[0].size(0), weights[2 * blocks + 1].size(0), linear.size(1)}, blocks, linear.size(0)};
}

// Packing takes any arithmetic, those of GPUs too, running one that is here.
constexpr Arithmetic kAll[] = {Arithmetic::amx, Arithmetic::winograd_bf16, Arithmetic::winograd_mixed,
                               Arithmetic::winograd_fp32, Arithmetic::avx512_bf16};

Arithmetic arithmetic_of(c10::string_view name) {
  for (Arithmetic one : kAll)
    if (name == arithmetic_name(one)) return one;
  TORCH_CHECK(false, "fused: arithmetic is '", name, "', which there is not");
}

// Nothing for one of GPUs, which all take the same.
std::optional<Arithmetic> packed_for(c10::string_view name) {
  const mma::Arithmetic* found = mma::arithmetic_of(name);
  if (found && !found->integers) return std::nullopt;
  return arithmetic_of(name);
}

Arithmetic live_arithmetic_of(c10::string_view name) {
  for (Arithmetic one : arithmetics())
    if (name == arithmetic_name(one)) return one;
  TORCH_CHECK(false, "fused: arithmetic is '", name, "', which this processor has not");
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

void check_fused_pack(at::TensorList weights, at::TensorList gains, at::TensorList biases, const at::Tensor& linear,
                      const at::Tensor& linear_bias, std::optional<Arithmetic> arithmetic) {
  constexpr const char* op = "fused_pack";
  TORCH_CHECK(weights.size() >= 9 && (weights.size() - 3) % 6 == 0, op, ": there must be 3 + 6n weights, not ",
              weights.size());
  TORCH_CHECK(gains.size() == weights.size() && biases.size() == weights.size(), op, ": there must be ", weights.size(),
              " gains and biases, not ", gains.size(), " and ", biases.size());
  TORCH_CHECK(linear.dim() == 2 && linear.scalar_type() == at::kFloat, op, ": linear must be float32 [K, C], not ",
              linear.scalar_type(), " ", linear.sizes());
  TORCH_CHECK(linear_bias.scalar_type() == at::kFloat && (linear_bias.sizes() == at::IntArrayRef{linear.size(0)}), op,
              ": linear_bias must be float32 [", linear.size(0), "], not ", linear_bias.scalar_type(), " ",
              linear_bias.sizes());
  const Shape shape = shape_of(weights, linear);
  const auto& widths = shape.widths;
  const char* refused = arithmetic ? refusal(*arithmetic, shape) : mma::refusal(shape, false);
  TORCH_CHECK(!*refused, op, ": ", refused, "; they are ", widths[0], ", ", widths[1], ", ", widths[2]);
  const Plan plan = plan_of(shape);
  for (size_t i = 0; i < plan.size(); ++i) {
    const Layer& layer = plan[i];
    const auto check = [&](const at::Tensor& tensor, const char* name, at::ScalarType type, at::IntArrayRef sizes) {
      TORCH_CHECK(tensor.scalar_type() == type && tensor.sizes() == sizes, op, ": ", name, "[", i, "] must be ", type,
                  " ", sizes, ", not ", tensor.scalar_type(), " ", tensor.sizes());
    };
    check(weights[i], "weights", at::kFloat, {layer.outputs, layer.inputs, layer.size, layer.size});
    check(gains[i], "gains", at::kDouble, {layer.outputs});
    check(biases[i], "biases", at::kDouble, {layer.outputs});
  }
}

void check_fused_network(const char* op, const at::Tensor& packed, at::IntArrayRef shape, Arithmetic arithmetic,
                         bool gradients) {
  TORCH_CHECK(shape.size() == 5, op, ": shape must be three widths, blocks and classes, not ", shape);
  const Shape network = shape_of(shape);
  const char* refused = refusal(arithmetic, network);
  TORCH_CHECK(!*refused, op, ": ", refused, "; shape is ", shape);
  const bool fits = packed.numel() == packed_bytes(arithmetic, network, true) ||
                    (!gradients && packed.numel() == packed_bytes(arithmetic, network, false));
  const bool aligned = reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 64 == 0;  // as torch gives memory
  TORCH_CHECK(packed.dim() == 1 && packed.scalar_type() == at::kByte && packed.is_contiguous() && fits && aligned, op,
              ": packed must come from fused_pack", in_integers(arithmetic) ? "_integers" : "",
              gradients ? " with gradients" : "", ", for shape ", shape, " and ", arithmetic_name(arithmetic));
}

bool are_of_cifar(const at::Tensor& images) {
  return images.dim() == 4 && images.size(1) == 3 && images.size(2) == 32 && images.size(3) == 32;
}

at::ScalarType type_of(Arithmetic arithmetic) {
  const Dtype replicas = replicas_of(arithmetic);
  return replicas == Dtype::i16 ? at::kShort : replicas == Dtype::bf16 ? at::kBFloat16 : at::kFloat;
}

void check_fused(const at::Tensor& replicas, const at::Tensor& packed, at::IntArrayRef shape, Arithmetic arithmetic,
                 bool gradients) {
  const char* op = gradients ? "fused_gradients" : "fused_logits";
  const at::ScalarType type = type_of(arithmetic);
  TORCH_CHECK(are_of_cifar(replicas) && replicas.scalar_type() == type, op, ": replicas must be ", type,
              " [R, 3, 32, 32], not ", replicas.scalar_type(), " ", replicas.sizes());
  check_fused_network(op, packed, shape, arithmetic, gradients);
}

std::vector<at::Tensor> contiguous(at::TensorList tensors) {
  std::vector<at::Tensor> all;
  for (const at::Tensor& tensor : tensors) all.push_back(tensor.contiguous());
  return all;
}

at::Tensor fused_pack_cpu(at::TensorList weights, at::TensorList gains, at::TensorList biases, const at::Tensor& linear,
                          const at::Tensor& linear_bias, c10::string_view named, bool gradients) {
  const std::optional<Arithmetic> arithmetic = packed_for(named);
  TORCH_CHECK(arithmetic || !gradients, "fused_pack: arithmetic is '", named, "', which has no gradients");
  check_fused_pack(weights, gains, biases, linear, linear_bias, arithmetic);
  const Shape shape = shape_of(weights, linear);
  const auto kernels = contiguous(weights), scales = contiguous(gains), shifts = contiguous(biases);
  std::vector<Parameters> parameters;
  for (size_t i = 0; i < kernels.size(); ++i)
    parameters.push_back(
        {kernels[i].const_data_ptr<float>(), scales[i].const_data_ptr<double>(), shifts[i].const_data_ptr<double>()});
  const at::Tensor last = linear.contiguous(), last_bias = linear_bias.contiguous();
  const int64_t bytes = arithmetic ? packed_bytes(*arithmetic, shape, gradients) : mma::bf16::packed_bytes(shape);
  at::Tensor packed = at::empty({bytes}, linear.options().dtype(at::kByte));
  const float *weight = last.const_data_ptr<float>(), *bias = last_bias.const_data_ptr<float>();
  auto* to = reinterpret_cast<char*>(packed.mutable_data_ptr<uint8_t>());
  if (arithmetic)
    pack(*arithmetic, shape, parameters, weight, bias, gradients, to);
  else
    mma::bf16::pack(shape, parameters, weight, bias, to);
  return packed;
}

// Calls `by` with the rows of whole tasks, begin and end: some kernels take no less time for fewer rows.
template <class By>
void by_tasks(int64_t rows, const By& by) {
  at::parallel_for(0, (rows + kRowsPerTask - 1) / kRowsPerTask, 1,
                   [&](int64_t first, int64_t last) { by(first * kRowsPerTask, std::min(last * kRowsPerTask, rows)); });
}

void run_rows(const at::Tensor& replicas, const at::Tensor& packed, const Shape& shape, Arithmetic arithmetic,
              at::Tensor& logits, const at::Tensor* classes, at::Tensor* gradients) {
  const at::Tensor pixels = replicas.contiguous(at::MemoryFormat::ChannelsLast);
  const auto* from = static_cast<const char*>(pixels.const_data_ptr());
  const int64_t bytes = kImageElements * pixels.element_size();
  const auto* network = reinterpret_cast<const char*>(packed.const_data_ptr<uint8_t>());
  const int64_t* labels = classes ? classes->const_data_ptr<int64_t>() : nullptr;
  float *to = logits.mutable_data_ptr<float>(), *by = gradients ? gradients->mutable_data_ptr<float>() : nullptr;
  by_tasks(replicas.size(0), [&](int64_t begin, int64_t end) {
    run(arithmetic, shape, network, from + begin * bytes, end - begin, to + begin * shape.classes,
        labels ? labels + begin : nullptr, by ? by + begin * kImageElements : nullptr);
  });
}

at::Tensor fused_logits_cpu(const at::Tensor& replicas, const at::Tensor& packed, at::IntArrayRef shape,
                            c10::string_view arithmetic) {
  const Arithmetic by = live_arithmetic_of(arithmetic);
  check_fused(replicas, packed, shape, by, false);
  const Shape network = shape_of(shape);
  at::Tensor logits = at::empty({replicas.size(0), network.classes}, replicas.options().dtype(at::kFloat));
  run_rows(replicas, packed, network, by, logits, nullptr, nullptr);
  return logits;
}

// Noise, network and votes of each row, in one call. A task draws its replicas where it needs them, and rows of padding
// are neither drawn nor computed.
at::Tensor fused_votes_cpu(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
                           const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law,
                           at::TensorList table, const at::Tensor& scale, const at::Tensor& shift, bool clip,
                           const at::Tensor& packed, at::IntArrayRef shape, c10::string_view arithmetic,
                           at::Tensor& counts, at::Tensor& invalid, c10::string_view voting,
                           const std::optional<at::Tensor>& weights) {
  const Arithmetic by = live_arithmetic_of(arithmetic);
  TORCH_CHECK(are_of_cifar(images), "fused_votes: images must be [S, 3, 32, 32], not ", images.sizes());
  check_noisy_replicas(images, slots, image_ids, sample_ids, key, law, table, scale, shift, type_of(by));
  check_fused_network("fused_votes", packed, shape, by, false);
  const Shape network = shape_of(shape);
  const at::Tensor live = at::nonzero(slots.ge(0)).squeeze(1);
  const int64_t rows = live.size(0);
  const at::Tensor slot = slots.index_select(0, live), image_id = image_ids.index_select(0, live),
                   sample_id = sample_ids.index_select(0, live);
  at::Tensor found = at::empty({rows, network.classes}, images.options().dtype(at::kFloat));
  check_tally(found, slot, counts, invalid, voting, weights);
  by_tasks(rows, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kRowsDrawn) {
      const int64_t count = std::min(kRowsDrawn, end - first);
      const at::Tensor replicas =
          noisy_replicas_cpu(images, slot.narrow(0, first, count), image_id.narrow(0, first, count),
                             sample_id.narrow(0, first, count), key, law, table, scale, shift, clip, type_of(by), true);
      at::Tensor logits = found.narrow(0, first, count);
      run_rows(replicas, packed, network, by, logits, nullptr, nullptr);
    }
  });
  tally_cpu(found, slot, counts, invalid, voting, weights);
  return at::zeros({slots.size(0), network.classes}, found.options()).index_copy_(0, live, found);
}

std::tuple<at::Tensor, at::Tensor> fused_gradients_cpu(const at::Tensor& replicas, const at::Tensor& classes,
                                                       const at::Tensor& packed, at::IntArrayRef shape,
                                                       c10::string_view arithmetic) {
  const Arithmetic by = live_arithmetic_of(arithmetic);
  TORCH_CHECK(!in_integers(by), "fused_gradients: arithmetic is '", arithmetic,
              "', a function of integers, which has no gradients");
  check_fused(replicas, packed, shape, by, true);
  const Shape network = shape_of(shape);
  check_fused_classes(classes, replicas.size(0), network.classes);
  const auto options = replicas.options().dtype(at::kFloat);
  at::Tensor logits = at::empty({replicas.size(0), network.classes}, options);
  at::Tensor gradients = at::empty(replicas.sizes(), options.memory_format(at::MemoryFormat::Contiguous));
  const at::Tensor labels = classes.contiguous();
  run_rows(replicas, packed, network, by, logits, &labels, &gradients);
  return {logits, gradients};
}

}  // namespace

TORCH_LIBRARY_IMPL(smoothfast, CPU, m) {
  m.impl("fused_pack", fused_pack_cpu);
  m.impl("fused_logits", fused_logits_cpu);
  m.impl("fused_votes", fused_votes_cpu);
  m.impl("fused_gradients", fused_gradients_cpu);
}

}  // namespace smoothfast
