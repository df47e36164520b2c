// The body of attack_step, included once per instruction set by each_isa.inc.
namespace smoothfast {
namespace ISA_NAMESPACE {
namespace {

void linf(const AttackStep& job, int64_t begin, int64_t end) {
  float* __restrict adversarial = job.adversarial;
  const float* __restrict images = job.images, * __restrict gradients = job.gradients;
  const Attack attack = job.attack;
  for (int64_t i = begin; i < end; ++i) adversarial[i] = linf_step(adversarial[i], images[i], gradients[i], attack);
}

template <class Value>
inline double sum_of_squares(int64_t elements, const Value& value) {
  alignas(64) double lanes[kLanes] = {};
  for (int64_t base = 0; base < elements; base += kLanes) {
    const int count = (int)std::min<int64_t>(kLanes, elements - base);
    for (int lane = 0; lane < count; ++lane) {
      const double term = value(base + lane);
      lanes[lane] += term * term;
    }
  }
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

void l2(const AttackStep& job, int64_t begin, int64_t end) {
  const Attack attack = job.attack;
  for (int64_t at = begin * job.elements; at < end * job.elements; at += job.elements) {
    float* __restrict adversarial = job.adversarial + at;
    const float* __restrict image = job.images + at, * __restrict gradient = job.gradients + at;
    const double step = l2_step(sum_of_squares(job.elements, [=](int64_t i) { return (double)gradient[i]; }), attack);
    const auto shift = [=](int64_t i) { return l2_shift(adversarial[i], image[i], gradient[i], step); };
    const double factor = l2_factor(sum_of_squares(job.elements, shift), attack);
    for (int64_t i = 0; i < job.elements; ++i) adversarial[i] = l2_shifted(image[i], shift(i) * factor, attack);
  }
}

const AttackKernels kernels = {linf, l2};

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace smoothfast
