// Weights into lanes: [36 frequencies] or [taps], [panels][inputs][outputs of a panel], pairs of inputs together in
// bf16.

// Weights of a layer as outputs and inputs of a pass: those of the layer, or the other way round and flipped backwards.
struct Weights {
  const float* from;
  int64_t outputs, inputs, next_output, next_input;
  int taps;
  bool flipped;

  // A tap of an input, for the outputs of one vector.
  FORCED Lanes tap(int64_t output, int64_t input, int tap) const {
    if (input >= inputs) return (Lanes){};
    return gather(from + output * next_output + input * next_input + (flipped ? taps - 1 - tap : tap), next_output);
  }
};

FORCED void transform_weights(const Lanes (&w)[9], Lanes (&u)[36]) {
  Lanes columns[3][6];
#pragma GCC unroll 3
  for (int c = 0; c < 3; ++c) evaluate_weights(w[c], w[3 + c], w[6 + c], columns[c]);
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
    Lanes row[6];
    evaluate_weights(columns[0][i], columns[1][i], columns[2][i], row);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) u[6 * i + j] = row[j];
  }
}

template <class Number>
NOT_INLINED void pack_transformed(const Weights& weights, typename Number::Stored* to) {
  constexpr int kTogether = Number::kTogether;
  const int64_t panel = panel_of(weights.outputs), matrix = weights.outputs * weights.inputs;
  for (int64_t o = 0; o < weights.outputs; o += kLanes)
    for (int64_t i = 0; i < weights.inputs; i += kTogether) {
      Lanes u[kTogether][36];
      for (int one = 0; one < kTogether; ++one) {
        Lanes w[9];
        for (int tap = 0; tap < 9; ++tap) w[tap] = weights.tap(o, i + one, tap);
        transform_weights(w, u[one]);
      }
      const int64_t place = o / panel * panel * weights.inputs + i * panel + o % panel * kTogether;
      for (int frequency = 0; frequency < kFrequencies; ++frequency) {
        Lanes both[kTogether];
        for (int one = 0; one < kTogether; ++one) both[one] = u[one][frequency];
        Number::put_weights(to + frequency * matrix + place, both);
      }
    }
}

// [panels][taps][inputs][outputs of a panel].
template <class Number>
NOT_INLINED void pack_taps(const Weights& weights, typename Number::Stored* to) {
  constexpr int kTogether = Number::kTogether;
  const int64_t panel = panel_of(weights.outputs);
  for (int64_t o = 0; o < weights.outputs; o += kLanes)
    for (int tap = 0; tap < weights.taps; ++tap)
      for (int64_t i = 0; i < weights.inputs; i += kTogether) {
        Lanes both[kTogether];
        for (int one = 0; one < kTogether; ++one) both[one] = weights.tap(o, i + one, tap);
        const int64_t place = (o / panel * weights.taps + tap) * weights.inputs * panel + i * panel;
        Number::put_weights(to + place + o % panel * kTogether, both);
      }
}

// [panels][3 rows][9 or 10][outputs of a panel]: the pixels and channels of a row as they lie in an image.
template <class Number>
void pack_image(const float* weights, int64_t outputs, typename Number::Stored* to) {
  constexpr int kTogether = Number::kTogether, kTaps = kTogether == 1 ? 9 : 10;
  const int64_t panel = panel_of(outputs);
  std::vector<float> row(outputs * 9);
  for (int ky = 0; ky < 3; ++ky) {
    for (int64_t o = 0; o < outputs; ++o)
      for (int i = 0; i < 9; ++i) row[o * 9 + i] = weights[(o * 3 + i % 3) * 9 + ky * 3 + i / 3];
    const Weights of_row = {row.data(), outputs, 9, 9, 1, 1, false};
    for (int64_t o = 0; o < outputs; o += kLanes)
      for (int i = 0; i < kTaps; i += kTogether) {
        Lanes both[kTogether];
        for (int one = 0; one < kTogether; ++one) both[one] = of_row.tap(o, i + one, 0);
        Number::put_weights(to + (o / panel * 3 + ky) * kTaps * panel + i * panel + o % panel * kTogether, both);
      }
  }
}

// [outputs][3][3][3 channels].
inline void pack_image_backwards(const float* weights, int64_t outputs, float* to) {
  for (int64_t o = 0; o < outputs; ++o)
    for (int tap = 0; tap < 9; ++tap)
      for (int channel = 0; channel < 3; ++channel) *to++ = weights[(o * 3 + channel) * 9 + tap];
}

template <class Number>
void pack_layer(const Layer& layer, const Place& place, const float* weights, bool backward, char* packed) {
  using Stored = typename Number::Stored;
  const int taps = layer.size * layer.size;
  if (layer.part == Part::image) {
    pack_image<Number>(weights, layer.outputs, (Stored*)(packed + place.weights));
    if (backward) pack_image_backwards(weights, layer.outputs, (float*)(packed + place.backward));
    return;
  }
  const bool transformed = taps == 9 && layer.stride == 1;
  const Weights of = {weights, layer.outputs, layer.inputs, layer.inputs * taps, taps, taps, false};
  const auto put = [&](const Weights& these, int64_t at) {
    transformed ? pack_transformed<Number>(these, (Stored*)(packed + at))
                : pack_taps<Number>(these, (Stored*)(packed + at));
  };
  put(of, place.weights);
  // A stride of 2 goes by the taps as they are.
  if (backward)
    put({weights, layer.inputs, layer.outputs, taps, layer.inputs * taps, taps, transformed}, place.backward);
}

// Weights of the layers of a program, in which gains are, as the kernels read them.
void pack(const Program& program, const std::vector<const float*>& weights, bool backward, char* packed) {
  for (size_t i = 0; i < program.plan.size(); ++i) {
#if defined(PRODUCTS_OF_BF16)
    if (program.places[i].bf16) {
      pack_layer<BFloat16>(program.plan[i], program.places[i], weights[i], backward, packed);
      continue;
    }
#endif
    pack_layer<Float32>(program.plan[i], program.places[i], weights[i], backward, packed);
  }
}
