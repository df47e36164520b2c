// Transforms of F(4x4, 3x3) (Winograd 1980; Lavin and Gray 2016) at the points 0, a, -a, 1/a, -1/a and infinity.
//
// a^2 = 0.43 has the least error of 13 sets of points that were tried, in bf16 5.0e-3 of the logits of ResNet-20, where
// 0, 1, -1, 1/2, -1/2 have 9.4e-3. Weights at a and -a are scaled by a, those at 1/a and -1/a by 1/a: so products come.

#include "lanes_kernel.h"

constexpr float kASquared = 0.43f, kBSquared = 1 / 0.43f, kSquares = kASquared + kBSquared;
constexpr float kA = 0.65574385f, kB = 1.5249857f;  // roots of these

// A row or column of six inputs, of which `two` are wanted: at 0, at a and -a, at 1/a and -1/a, or at infinity.
enum class Point { zero, a, b, infinity };

template <Point point>
FORCED void evaluate(const Lanes (&x)[6], Lanes& plus, Lanes& minus) {
  if (point == Point::zero) plus = fused_away(fill(kSquares), x[2], x[0] + x[4]);
  if (point == Point::infinity) plus = fused_away(fill(kSquares), x[3], x[1] + x[5]);
  if (point == Point::a || point == Point::b) {
    const Lanes other = fill(point == Point::a ? kBSquared : kASquared);
    const Lanes even = fused_away(other, x[2], x[4]);
    const Lanes odd = fill(point == Point::a ? kA : kB) * fused_away(other, x[1], x[3]);
    plus = even + odd;
    minus = even - odd;
  }
}

template <class Number>
FORCED void put_row(const Lanes (&x)[6], typename Number::Stored* to, int64_t frequency) {
  Lanes plus, minus = {};
  evaluate<Point::zero>(x, plus, minus);
  Number::put(to, plus);
  evaluate<Point::a>(x, plus, minus);
  Number::put(to + frequency, plus);
  Number::put(to + 2 * frequency, minus);
  evaluate<Point::b>(x, plus, minus);
  Number::put(to + 3 * frequency, plus);
  Number::put(to + 4 * frequency, minus);
  evaluate<Point::infinity>(x, plus, minus);
  Number::put(to + 5 * frequency, plus);
}

// The part at one point (and its negative) of the columns of a row of tiles, side by side: two columns of each tile are
// those of the one before.
template <class Number, Point point>
FORCED void put_tiles(const float* from, int64_t row, int64_t channels, typename Number::Stored* to, int64_t frequency,
                      int tiles) {
  constexpr bool kTwo = point == Point::a || point == Point::b;
  constexpr int kFirst = point == Point::zero ? 0 : point == Point::a ? 1 : point == Point::b ? 3 : 5;
  Lanes plus[6], minus[6];
  const auto column = [&](int c) ALWAYS {
    Lanes x[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) x[i] = load(from + i * row + c * channels);
    evaluate<point>(x, plus[c], minus[c]);
  };
  column(0);
  column(1);
  for (int tile = 0; tile < tiles; ++tile, from += 4 * channels, to += channels) {
#pragma GCC unroll 4
    for (int c = 2; c < 6; ++c) column(c);
    put_row<Number>(plus, to + kFirst * 6 * frequency, frequency);
    if (kTwo) put_row<Number>(minus, to + (kFirst + 1) * 6 * frequency, frequency);
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      plus[c] = plus[c + 4];
      if (kTwo) minus[c] = minus[c + 4];
    }
  }
}

// Tiles side by side, [rows][pixels][channels] of a map, to [36 frequencies][tiles][channels].
template <class Number>
FORCED void to_frequencies(const float* from, int64_t row, int64_t channels, typename Number::Stored* to,
                           int64_t frequency, int tiles) {
  put_tiles<Number, Point::zero>(from, row, channels, to, frequency, tiles);
  put_tiles<Number, Point::a>(from, row, channels, to, frequency, tiles);
  put_tiles<Number, Point::b>(from, row, channels, to, frequency, tiles);
  put_tiles<Number, Point::infinity>(from, row, channels, to, frequency, tiles);
}

// Sums at six points to four outputs.
FORCED void interpolate(const Lanes (&m)[6], Lanes (&y)[4]) {
  const Lanes sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  y[0] = fused(sum_b, fill(kA), fused(sum_a, fill(kB), m[0]));
  y[1] = difference_a + difference_b;
  y[2] = fused(sum_b, fill(kB), sum_a * fill(kA));
  y[3] = fused(difference_b, fill(kBSquared), fused(difference_a, fill(kASquared), m[5]));
}

// Sums of a tile, [36 frequencies], to its 4x4 outputs, which `finish` is given one by one: (row, pixel, lanes).
template <class Finish>
FORCED void from_frequencies(const float* from, int64_t frequency, const Finish& finish) {
  Lanes columns[6][4];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    Lanes m[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) m[i] = load(from + (6 * i + j) * frequency);
    interpolate(m, columns[j]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    Lanes m[6], y[4];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) m[j] = columns[j][r];
    interpolate(m, y);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) finish(r, c, y[c]);
  }
}

// Three weights at six points.
FORCED void evaluate_weights(Lanes w0, Lanes w1, Lanes w2, Lanes (&u)[6]) {
  constexpr float kScaleA = 1 / (2 * kA * (kASquared - kBSquared)), kScaleB = 1 / (2 * kB * (kBSquared - kASquared));
  const Lanes even_a = fused(fill(kASquared), w2, w0), odd_a = fill(kA) * w1;
  const Lanes even_b = fused(fill(kBSquared), w2, w0), odd_b = fill(kB) * w1;
  u[0] = w0;
  u[1] = fill(kScaleA) * (even_a + odd_a);
  u[2] = fill(kScaleA) * (even_a - odd_a);
  u[3] = fill(kScaleB) * (even_b + odd_b);
  u[4] = fill(kScaleB) * (even_b - odd_b);
  u[5] = w2;
}
