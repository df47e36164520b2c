// smoothfast._C: importing it registers the ops; beside them, what is not a tensor op.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "cpu/fused/network.h"
#include "cpu/fused/tiles/network.h"
#include "cpu/fused/tiles/program.h"
#include "cpu/isa.h"
#include "cpu/noisy_replicas.h"
#include "cuda/fused/launch.h"
#include "cuda/launch.h"

namespace py = pybind11;
using namespace smoothfast;
using namespace pybind11::literals;
namespace tiles = fused::tiles;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

#if defined(_OPENMP)
constexpr int kOpenMp = _OPENMP;
#else
constexpr int kOpenMp = 0;  // at::parallel_for is a serial loop
#endif

// Set by setup.py where CUDA sources are compiled: sm_80,sm_90,... A macro of one argument would stop at the comma.
#ifndef SMOOTHFAST_CUDA_ARCHITECTURES
#define SMOOTHFAST_CUDA_ARCHITECTURES
#endif
#define SMOOTHFAST_TEXT(...) #__VA_ARGS__
#define SMOOTHFAST_TEXT_OF(...) SMOOTHFAST_TEXT(__VA_ARGS__)
constexpr const char* kCudaArchitectures = SMOOTHFAST_TEXT_OF(SMOOTHFAST_CUDA_ARCHITECTURES);

std::vector<std::string> fused_arithmetics() {
  std::vector<std::string> names;
  for (fused::Arithmetic one : fused::arithmetics()) names.push_back(fused::arithmetic_name(one));
  return names;
}

py::tuple fused_profile(const Array<uint8_t>& packed, const std::array<int64_t, 5>& shape, const std::string& processor,
                        int repeats) {
  for (tiles::Processor one : tiles::processors()) {
    if (processor != tiles::processor_name(one)) continue;
    const fused::Shape network = {{shape[0], shape[1], shape[2]}, shape[3], shape[4]};
    if (packed.size() != tiles::program_of(network).packed_backward)
      throw py::value_error("packed must come from fused_pack with gradients, for this shape");
    const auto found = tiles::profile(network, reinterpret_cast<const char*>(packed.data()), one, repeats);
    py::list layers;
    for (const auto& layer : found.layers)
      layers.append(py::make_tuple(layer.weight, layer.backward, layer.products, layer.seconds));
    return py::make_tuple(found.product_seconds, found.samples, layers);
  }
  throw py::value_error("processor is '" + processor + "', which this one is not");
}

std::map<std::string, std::string> build_info() {
  return {{"torch", TORCH_VERSION},
          {"compiler", __VERSION__},
          {"cplusplus", std::to_string(__cplusplus)},
          {"openmp", std::to_string(kOpenMp)},
          {"cuda_architectures", kCudaArchitectures}};
}

std::vector<std::string> supported_instruction_sets() {
  std::vector<std::string> names;
  for (Isa isa : kIsas)
    if (isa_supported(isa)) names.push_back(isa_name(isa));
  return names;
}

Array<uint32_t> philox_words(const std::vector<uint32_t>& counter, const std::vector<uint32_t>& key, int blocks) {
  if (counter.size() != 4 || key.size() != 2 || blocks < 1 || blocks % 16)
    throw py::value_error("philox_words takes 4 counter words, 2 key words and a multiple of 16 blocks");
  Array<uint32_t> words(4 * blocks);
  replica_kernels().words({key[0], key[1]}, {counter[1], counter[2], counter[3]}, counter[0], blocks,
                          words.mutable_data());
  return words;
}

Lattice lattice_of(const Array<int64_t>& high, const Array<int64_t>& low, const Array<int32_t>& guide) {
  return {high.data(), low.data(), guide.data(), static_cast<int32_t>(high.size() / 2), guide_shift(guide.size())};
}

py::tuple guided_draws(const Array<uint32_t>& words, const Array<int64_t>& high, const Array<int64_t>& low,
                       const Array<int32_t>& guide) {
  Array<int32_t> noise(words.size());
  Array<uint8_t> unsure(words.size());
  replica_kernels().draws(lattice_of(high, low, guide), words.data(), static_cast<int>(words.size()),
                          noise.mutable_data(), unsure.mutable_data());
  return py::make_tuple(noise, unsure);
}

Array<int32_t> exact_draws(const Array<uint32_t>& words, const Array<uint64_t>& refined, const Array<int64_t>& high,
                           const Array<int64_t>& low, const Array<int32_t>& guide) {
  const Lattice law = lattice_of(high, low, guide);
  Array<int32_t> noise(words.size());
  for (py::ssize_t i = 0; i < words.size(); ++i)
    noise.mutable_data()[i] = exact_draw(law, words.data()[i], refined.data()[i]);
  return noise;
}

py::dict dict_of(const Launch& launch) {
  return py::dict("units"_a = launch.units, "grid"_a = launch.grid, "block"_a = kThreads, "shared"_a = launch.shared);
}

py::dict cuda_launch_of_noisy_replicas(int64_t rows, int64_t channels, int64_t plane, int64_t out_bytes,
                                       bool channels_last, bool aligned, int64_t guide_bytes, int multiprocessors) {
  const ReplicaLaunch all =
      replica_launch(rows, channels, plane, out_bytes, channels_last, aligned, guide_bytes, multiprocessors);
  py::dict launch = dict_of(all.launch);
  launch["chunks"] = all.chunks;
  launch["steps"] = all.steps;
  launch["guide_bytes"] = all.guide;
  launch["interleaved"] = all.interleaved;
  launch["vectorized"] = all.vectorized;
  return launch;
}

py::dict cuda_launch_of_tally(int64_t rows, int multiprocessors) {
  return dict_of(tally_launch(rows, multiprocessors));
}

py::dict cuda_launch_of_replica_sum(int64_t images, int64_t elements, int64_t in_bytes, bool aligned,
                                    int multiprocessors) {
  const SumLaunch all = replica_sum_launch(images, elements, in_bytes, aligned, multiprocessors);
  py::dict launch = dict_of(all.launch);
  launch["width"] = all.width;
  return launch;
}

py::dict cuda_launch_of_attack_step(int64_t images, int64_t elements, bool l2, int multiprocessors) {
  return dict_of(attack_step_launch(images, elements, l2, multiprocessors));
}

py::dict cuda_launch_of_perturb_weights(int64_t tiles, int64_t passes, int multiprocessors) {
  return dict_of(perturb_launch(tiles, passes, multiprocessors));
}

py::dict cuda_launch_of_fused_votes(const std::string& arithmetic, bool wide, int64_t rows, int64_t guide_bytes) {
  const auto* by = fused::mma::arithmetic_of(arithmetic);
  if (!by) throw py::value_error("arithmetic is '" + arithmetic + "', which GPUs have not");
  const auto all = fused::mma::votes_launch(*by, wide, rows, guide_bytes);
  py::dict launch = dict_of(all.launch);
  launch["guide_bytes"] = all.guide;
  return launch;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of smoothfast: registers torch.ops.smoothfast.*";
  m.def("build_info", build_info, "What the extension was built with.");
  m.def("instruction_set", [] { return std::string(isa_name(active_isa())); }, "The instruction set in use.");
  m.def("supported_instruction_sets", supported_instruction_sets, "Those that this processor has, worst first.");
  m.def("use_instruction_set", use_isa, py::arg("name"), "Switches all kernels: scalar, avx2 or avx512.");
  m.def("fused_arithmetics", fused_arithmetics, "What fused networks are computed by here.");
  m.def("fused_profile", fused_profile, py::arg("packed"), py::arg("shape"), py::arg("processor"), py::arg("repeats"),
        "Seconds of a product of tiles; samples of a micro-batch; its layers: number of the weight, whether backwards, "
        "products, seconds.");
  m.def("philox_words", philox_words, py::arg("counter"), py::arg("key"), py::arg("blocks"),
        "Words of consecutive blocks in element order, from the vector path in use.");
  m.def("guided_draws", guided_draws, py::arg("words"), py::arg("high"), py::arg("low"), py::arg("guide"),
        "Lattice noise of words by the guide alone, and which draws the guide leaves open.");
  m.def("exact_draws", exact_draws, py::arg("words"), py::arg("refined"), py::arg("high"), py::arg("low"),
        py::arg("guide"), "Lattice noise of 96-bit numbers (word, refined) by the thresholds.");
  m.def("cuda_launch_of_noisy_replicas", cuda_launch_of_noisy_replicas, py::arg("rows"), py::arg("channels"),
        py::arg("plane"), py::arg("out_bytes"), py::arg("channels_last"), py::arg("aligned"), py::arg("guide_bytes"),
        py::arg("multiprocessors"), "How the CUDA kernel would be launched; needs no device, as those that follow.");
  m.def("cuda_launch_of_tally", cuda_launch_of_tally, py::arg("rows"), py::arg("multiprocessors"));
  m.def("cuda_launch_of_replica_sum", cuda_launch_of_replica_sum, py::arg("images"), py::arg("elements"),
        py::arg("in_bytes"), py::arg("aligned"), py::arg("multiprocessors"));
  m.def("cuda_launch_of_attack_step", cuda_launch_of_attack_step, py::arg("images"), py::arg("elements"), py::arg("l2"),
        py::arg("multiprocessors"));
  m.def("cuda_launch_of_fused_votes", cuda_launch_of_fused_votes, py::arg("arithmetic"), py::arg("wide"),
        py::arg("rows"), py::arg("guide_bytes"));
  m.def("cuda_launch_of_perturb_weights", cuda_launch_of_perturb_weights, py::arg("tiles"), py::arg("passes"),
        py::arg("multiprocessors"));
}
