"""The definition of integer networks, step by step against whole numbers of Python and fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from helpers.integer import random_tensors
from torch import Tensor

from smoothfast.integers.exact import network_of
from smoothfast.integers.network import IntegerConvolution, fma, of_pixels


def nearest(value: Fraction, dtype: type[np.floating] = np.float32) -> float:
    """The float nearest to a fraction, to even on ties, by trying the neighbours of a guess."""
    guess = dtype(float(value))
    near = [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    best = min(abs(Fraction(float(x)) - value) for x in near)
    ties = [x for x in near if abs(Fraction(float(x)) - value) == best]
    even = [x for x in ties if int(x.view(np.int32)) % 2 == 0]
    return float((even or ties)[0])


def test_a_multiply_add_is_rounded_once() -> None:
    """Where two roundings, of the product and of the sum, or of float64 and float32, give something else, too."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-(2**24), 2**24, (4000,), generator=generator).float()
    b = torch.rand(4000, generator=generator) * 2.0 ** torch.randint(-20, 0, (4000,), generator=generator)
    c = torch.randn(4000, generator=generator) * 2.0 ** torch.randint(-30, 8, (4000,), generator=generator)
    c[::3] = (-(a * b) * (1 + 2.0**-12))[::3]
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(*(v.tolist() for v in (a, b, c)), strict=True)]
    wanted = torch.tensor([nearest(value) for value in exact])
    assert torch.equal(fma(a, b, c), wanted)
    assert not torch.equal(a * b + c, wanted)


def test_a_sum_that_lies_between_two_floats_is_rounded_by_what_was_cut_off() -> None:
    """The product is a little below 2^-24, half a place of 1 + 2^-23: float64 cannot hold what is missing, and would
    take it for a tie."""
    a, b = torch.tensor([2.0**-12 * (1 + 2.0**-23)]), torch.tensor([2.0**-12 * (1 - 2.0**-23)])
    c = torch.tensor([1 + 2.0**-23])
    assert fma(a, b, c).tolist() == [nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))]
    assert (a.double() * b.double() + c.double()).float() != fma(a, b, c)


def test_biases_of_images_are_by_the_border() -> None:
    bias = torch.arange(9.0).view(3, 3, 1)
    assert of_pixels(bias, 4)[0].tolist() == [[0, 1, 1, 2], [3, 4, 4, 5], [3, 4, 4, 5], [6, 7, 7, 8]]


def test_maps_are_rounded_to_even_and_cut_off() -> None:
    layer = IntegerConvolution(torch.zeros(1, 1, 3, 3), torch.tensor([0.5]), torch.tensor([0.0]))
    sums = torch.tensor([-3.0, 1.0, 3.0, 5.0, 509.0, 511.0, 4000.0]).view(1, 1, 1, -1).double()
    assert layer.rounded(sums).flatten().tolist() == [0, 0, 2, 2, 254, 255, 255]


def by_hand(tensors: dict[str, Tensor], pixels: np.ndarray) -> np.ndarray:
    """Logits of one image int [3, 32, 32], in whole numbers of NumPy, tap by tap."""
    numbers = {name: tensor.numpy() for name, tensor in tensors.items()}

    def rounded(sums: np.ndarray, name: str) -> np.ndarray:
        scale, bias = numbers[f"{name}.scale"].astype(np.float64), numbers[f"{name}.bias"].astype(np.float64)
        if bias.ndim == 3:
            at = [0, *[1] * (sums.shape[1] - 2), 2]
            bias = bias[at][:, at].transpose(2, 0, 1)
        else:
            bias = bias[:, None, None]
        values = [Fraction(int(s)) * Fraction(x) + Fraction(y)
                  for s, x, y in zip(sums.ravel(), np.broadcast_to(scale[:, None, None], sums.shape).ravel(),
                                     np.broadcast_to(bias, sums.shape).ravel(), strict=True)]  # fmt: skip
        return np.array([min(max(round(Fraction(nearest(v))), 0), 255) for v in values]).reshape(sums.shape)

    def convolved(x: np.ndarray, name: str, stride: int = 1) -> np.ndarray:
        weight, padded = numbers[name].astype(np.int64), np.pad(x.astype(np.int64), ((0, 0), (1, 1), (1, 1)))
        size = x.shape[1]
        taps = ((weight[:, :, i, j], padded[:, i : i + size : stride, j : j + size : stride])
                for i in range(3) for j in range(3))  # fmt: skip
        return sum(np.einsum("oc,cyx->oyx", *tap) for tap in taps)

    x = rounded(convolved(pixels, "image.weight"), "image")
    for number in range(3):
        name = f"blocks.{number}"
        inner = rounded(convolved(x, f"{name}.first.weight", 2 if number else 1), f"{name}.first")
        if number:
            added = np.einsum("oc,cyx->oyx", numbers[f"{name}.shortcut"][:, :, 0, 0].astype(np.int64), x[:, ::2, ::2])
        else:
            added = x * numbers[f"{name}.multiplier"].astype(np.int64)[:, None, None]
        sums = convolved(inner, f"{name}.second.weight")
        x = rounded(sums + (added << numbers[f"{name}.shift"].astype(np.int64)[:, None, None]), f"{name}.second")
    sums = numbers["linear"].astype(np.int64) @ x.sum((1, 2)) + numbers["linear_bias"]
    return sums.astype(np.float32) * numbers["unit"]


def test_a_network_is_its_whole_numbers() -> None:
    tensors = random_tensors((16, 16, 16), 1, 5, seed=3)
    pixels = torch.randint(-1900, 1900, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    wanted = np.stack([by_hand(tensors, image.numpy()) for image in pixels])
    network = network_of(tensors)
    assert np.array_equal(network(pixels).numpy(), wanted)
    assert np.array_equal(network(pixels.float() / 255).numpy(), wanted)
    assert torch.equal(network(pixels.flip(0)).flip(0), network(pixels))


def test_images_beyond_16_bits_are_cut_off_and_no_number_is_black() -> None:
    network = network_of(random_tensors((16, 16, 16), 1, 5, seed=3))
    images = torch.full((1, 3, 32, 32), 1e9)
    assert torch.equal(network(images), network(torch.full((1, 3, 32, 32), 32767)))
    assert torch.equal(network(images * torch.nan), network(torch.zeros(1, 3, 32, 32)))
