"""Noise laws and the constants that kernels read for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..checks import noise_level


@dataclass(frozen=True)
class Law:
    """A noise law with its constants, ready for `ops.noisy_replicas`.

    Attributes:
        name: "lattice" or "gaussian".
        sigma: standard deviation per channel, in [0, 1] pixel units; one entry serves all channels.
        table: the constants the kernels read. lattice: thresholds' upper words int64 [S, 2M], lower words
            int64 [S, 2M], guide int32 [S, G]. gaussian: sigma in units of the image, float32 [S].
    """

    name: str
    sigma: tuple[float, ...]
    table: tuple[Tensor, ...]

    def deviation(self, elements: int) -> float:
        """Distance (total variation) of noise on so many elements from the rounded Gaussian that certificates speak of.

        Lattice noise keeps the mass beyond 6.5 sigma, 2 Phi(-6.5) = 8.03e-11 an element, in its end cells, and its
        thresholds are cut off at 2^-96. For float noise nothing of the kind is known: 0.
        """
        return 8.1e-11 * elements if self.name == "lattice" else 0.0

    def to(self, device: torch.device | str) -> Law:
        """The law with its constants on a device."""
        return Law(self.name, self.sigma, tuple(part.to(device) for part in self.table))


def lattice_law(sigma: float | Sequence[float]) -> Law:
    """The exact law of round(255 sigma N(0, 1)), for uint8 images; the only law of a sound certificate."""
    sigmas = _checked(sigma)
    high, low, guide = _lattice_table(sigmas)
    return Law("lattice", sigmas, (high, low, guide))


def gaussian_law(sigma: float | Sequence[float], levels: int = 1) -> Law:
    """sigma N(0, 1) in float32, for float images in [0, 1] (`levels=1`) or uint8 images (`levels=255`)."""
    sigmas = _checked(sigma)
    return Law("gaussian", sigmas, (torch.tensor([levels * s for s in sigmas], dtype=torch.float32),))


def no_noise() -> Law:
    """Images as they are, drawn by the same kernels: what an attack on a classifier without noise samples from."""
    return Law("gaussian", (0.0,), (torch.zeros(1),))


def float_law(sigma: float | Sequence[float]) -> Law:
    """The law of noise on float images in [0, 1]: Gaussian, and none for sigma 0."""
    return gaussian_law(sigma) if np.any(sigma) else no_noise()


def law_of(noise: str | None, sigma: Sequence[float], image_dtype: torch.dtype) -> Law:
    """The law of a name on images of a dtype; of None, lattice on uint8 images and gaussian on float ones.

    Raises:
        ValueError: lattice noise is for float images.
    """
    on_levels = image_dtype == torch.uint8
    if not any(sigma):
        return no_noise()
    if (noise or ("lattice" if on_levels else "gaussian")) == "gaussian":
        return gaussian_law(sigma, levels=255 if on_levels else 1)
    if not on_levels:
        raise ValueError("noise is 'lattice', which needs uint8 images; pass uint8, or noise='gaussian'")
    return lattice_law(sigma)


def _checked(sigma: float | Sequence[float]) -> tuple[float, ...]:
    sigmas = tuple(float(s) for s in np.atleast_1d(sigma))
    if not sigmas:
        raise ValueError(f"sigma is {sigma}; it must be a number, or one for each channel")
    for each in sigmas:
        noise_level(sigma=each)
    return sigmas


# ---- the lattice law -------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def lattice_thresholds(sigma: float) -> tuple[int, ...]:
    """T[i] = floor(2^96 Phi((2i+1) / (510 sigma))) for i = -M .. M-1, M = ceil(6.5 * 255 sigma).

    With a uniform 96-bit u, N = #{i: T[i] <= u} - M has the law of round(255 sigma Z); sigma is the exact value of
    the float. Mass beyond M (8e-11) stays in the end cells.
    """
    from mpmath import mp  # 40 ms of CPU time

    reach = math.ceil(Fraction(13, 2) * 255 * Fraction(sigma))
    with mp.workprec(320):
        root = mp.sqrt(2)
        lower = [
            int(mp.floor(mp.ldexp(mp.erfc(-mp.mpf(2 * i + 1) / (510 * mp.mpf(sigma)) / root), 95)))
            for i in range(-reach, 0)
        ]
    # Phi(z) is irrational, so floor(2^96 (1 - Phi(z))) = 2^96 - 1 - floor(2^96 Phi(z)): the upper half is the mirror.
    return (*lower, *(2**96 - 1 - t for t in reversed(lower)))


@lru_cache(maxsize=32)
def _lattice_table(sigmas: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of `Law.table`, one per sigma, padded to one M: -1 is below every word, 2^32 above."""
    rows = [lattice_thresholds(sigma) for sigma in sigmas]
    width = max(map(len, rows))
    high = np.empty((len(rows), width), np.int64)
    low = np.zeros((len(rows), width), np.uint64)
    for upper, lower, row in zip(high, low, rows, strict=True):
        pad = (width - len(row)) // 2
        upper[:pad], upper[width - pad :] = -1, 2**32
        upper[pad : width - pad] = [t >> 64 for t in row]
        lower[pad : width - pad] = [t & (2**64 - 1) for t in row]
    guide = _guide(high)
    return torch.from_numpy(high), torch.from_numpy(low.view(np.int64)), torch.from_numpy(guide)


def _guide(high: np.ndarray) -> np.ndarray:
    """One entry per bucket of float32 bits of the folded word; a single gather then decides almost every draw.

    The folded word a = |int32(w | 1)| maps both tails to small a; the bits of float32(a) are monotone in a, and
    their upper 8 + k bits number buckets that get finer towards the tail, as the thresholds do. An entry holds
    -|N| at the low end of its bucket (upper bits) and the lower bits of the one threshold inside (all ones if none).
    Words that share all float bits with a threshold are decided by the thresholds themselves.
    """
    for k in range(4, 16):
        rows = [_guide_row(row, k) for row in high]
        if all(row is not None for row in rows):
            return np.stack(rows)  # type: ignore[arg-type]
    raise ValueError("sigma is too large for a lattice table; use sigma up to 19")


def _guide_row(high: np.ndarray, k: int) -> np.ndarray | None:
    """The guide with 2^k buckets per octave, or None where a bucket would need two thresholds."""
    shift = 23 - k
    mask = (1 << shift) - 1
    reach = high.size // 2
    padding = int((high == -1).sum())
    words = high[padding:reach] | 1
    bits = _float_bits(words)
    bucket = (bits >> shift) - (127 << k)
    entries = (31 << k) + 1
    inside = np.bincount(bucket, minlength=entries)
    if inside.size > entries:
        return None
    crowded = inside[bucket] > 1
    first_bits = bits[np.searchsorted(bucket, bucket)]
    next_bucket = (_float_bits(words + 2) >> shift) - (127 << k)
    if np.any(crowded & ((bits != first_bits) | (next_bucket == bucket))):
        return None
    magnitude = reach - padding - (np.cumsum(inside) - inside)
    residual = np.full(entries, mask)
    residual[bucket] = bits & mask
    return ((-magnitude << shift) | residual).astype(np.int32)


def _float_bits(words: np.ndarray) -> np.ndarray:
    return words.astype(np.float32).view(np.int32).astype(np.int64)
