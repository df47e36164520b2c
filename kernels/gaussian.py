"""Two standard normals from two words by Box-Muller in float32, as in csrc/random/gaussian.h."""

from __future__ import annotations

import triton
import triton.language as tl

UNIT = tl.constexpr(2.0**-32)
TURN = tl.constexpr(6.283185307179586 * 2.0**-32)


@triton.jit
def log(u: tl.tensor) -> tl.tensor:
    """ln u for u in [2^-32, 1]."""
    # Exponent and mantissa such that the mantissa lies in [sqrt(1/2), sqrt(2)).
    shifted = u.to(tl.int32, bitcast=True) + (0x3F800000 - 0x3F3504F3)
    exponent = ((shifted >> 23) - 127).to(tl.float32)
    x = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    z = x * x
    p = tl.fma(x, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(p, x, 1.1676998740e-1)
    p = tl.fma(p, x, -1.2420140846e-1)
    p = tl.fma(p, x, 1.4249322787e-1)
    p = tl.fma(p, x, -1.6668057665e-1)
    p = tl.fma(p, x, 2.0000714765e-1)
    p = tl.fma(p, x, -2.4999993993e-1)
    p = tl.fma(p, x, 3.3333331174e-1)
    y = tl.fma(p * z, x, exponent * -2.12194440e-4)
    y = tl.fma(z, -0.5, y)
    return tl.fma(exponent, 0.693359375, x + y)


@triton.jit
def box_muller(radius_word: tl.tensor, angle_word: tl.tensor) -> tuple[tl.tensor, ...]:
    """Two standard normals from two words."""
    radius = tl.sqrt_rn(-2.0 * log(tl.fma(radius_word.to(tl.float32), UNIT, UNIT)))
    # Quarter turn and the rest in [-pi/4, pi/4].
    rounded = tl.add(angle_word, 0x20000000, sanitize_overflow=False)
    quarter, rest = rounded >> 30, (rounded & 0x3FFFFFFF).to(tl.int32) - 0x20000000
    t = rest.to(tl.float32) * TURN
    z = t * t
    s = tl.fma(tl.fma(z, -1.9515295891e-4, 8.3321608736e-3), z, -1.6666654611e-1)
    s = tl.fma(s * z, t, t)
    c = tl.fma(tl.fma(z, 2.443315711809948e-5, -1.388731625493765e-3), z, 4.166664568298827e-2)
    c = tl.fma(c * z, z, tl.fma(z, -0.5, 1.0))
    # Odd quarters swap sine and cosine, half turns negate.
    odd = (quarter & 1) != 0
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    cosine, sine = tl.where((quarter + 1 & 2) != 0, -cosine, cosine), tl.where((quarter & 2) != 0, -sine, sine)
    return radius * cosine, radius * sine
