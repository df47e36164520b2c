#include "noise_tensors.h"

#include <limits>

#include "../random/lattice.h"

namespace smoothfast {

NoiseTensors::NoiseTensors(const at::Tensor& images, const at::Tensor& slots, const at::Tensor& image_ids,
                           const at::Tensor& sample_ids, const at::Tensor& key, c10::string_view law,
                           at::TensorList table, const at::Tensor& scale, const at::Tensor& shift)
    : images(images.contiguous()),
      slots(slots.contiguous()),
      image_ids(image_ids.contiguous()),
      sample_ids(sample_ids.contiguous()),
      key(key.contiguous()),
      scale(scale.contiguous()),
      shift(shift.contiguous()),
      lattice(law == "lattice") {
  for (const at::Tensor& part : table) this->table.push_back(part.contiguous());
}

ReplicaArgs NoiseTensors::args(bool clip) const {
  ReplicaArgs args = {};
  args.images = images.const_data_ptr();
  args.slots = slots.const_data_ptr<int64_t>();
  args.image_ids = image_ids.const_data_ptr<int64_t>();
  args.sample_ids = sample_ids.const_data_ptr<int64_t>();
  args.key = key.const_data_ptr<int64_t>();
  args.scale = scale.const_data_ptr<float>();
  args.shift = shift.const_data_ptr<float>();
  args.sigmas = static_cast<int32_t>(table[0].size(0));
  if (lattice) {
    args.high = table[0].const_data_ptr<int64_t>();
    args.low = table[1].const_data_ptr<int64_t>();
    args.guide = table[2].const_data_ptr<int32_t>();
    args.reach = static_cast<int32_t>(table[0].size(1) / 2);
    args.entries = static_cast<int32_t>(table[2].size(1));
    args.guide_shift = guide_shift(args.entries);
  } else {
    args.sigma = table[0].const_data_ptr<float>();
  }
  const float infinity = std::numeric_limits<float>::infinity();
  args.least = clip ? 0.0f : -infinity;
  args.most = clip ? (images.scalar_type() == at::kFloat ? 1.0f : 255.0f) : infinity;
  args.channels = static_cast<uint32_t>(images.size(1));
  args.plane = static_cast<uint32_t>(images.size(2) * images.size(3));
  return args;
}

}  // namespace smoothfast
