"""A classifier that reads low-order bits breaks certificates under float noise, and none under lattice noise.

In the spirit of Voracek and Hein 2023, "Sound randomized smoothing in floating-point arithmetics": which floats
x + noise can take depends on x, so a classifier can tell two images apart that are as close as floats allow.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import smoothfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE, SIGMA, N = (3, 16, 16), 0.25, 1000


class Rule(nn.Module):
    """Votes for class 1 where `tells(noisy)` is true of any element that noise of 2 to 3 sigma left in (-1/4, 0)."""

    def __init__(self, tells: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tells = tells

    def forward(self, noisy: Tensor) -> Tensor:
        window = (noisy > -0.25) & (noisy < 0)
        told = (self.tells(noisy) & window).flatten(1).any(1)
        return torch.stack([~told, told], 1).float()


def odd_bit(noisy: Tensor) -> Tensor:
    """Not a multiple of 2^-24, the spacing of floats around the noise that leads from 1/2 to the window."""
    scaled = noisy.double() * 2**24
    return scaled != scaled.round()


def grey_level(noisy: Tensor) -> Tensor:
    return (noisy.double() * 255).round().long()


def make(rule: Callable[[Tensor], Tensor], **options: object) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(Rule(rule).eval(), SIGMA, 2, precision="fp32", **options)


def test_a_float_certificate_breaks_within_a_millionth_of_its_radius() -> None:
    smoothed = make(odd_bit)
    image = torch.full((1, *SHAPE), 0.5)
    neighbour = image - 2.0**-25
    certificate = smoothed.certify(image, n=N)
    distance = (image.double() - neighbour.double()).norm()
    assert certificate.labels.item() == 0
    assert 0 < distance < 2e-6 * certificate.radii.item()
    assert smoothed.predict(neighbour, n=N).labels.item() == 1  # in all but name an adversarial example
    assert certificate.sound is False


RULES = {
    "low-order bit": odd_bit,
    "parity of grey levels": lambda noisy: grey_level(noisy) % 2 != 0,
    "grey levels that 128 cannot reach": lambda noisy: (grey_level(noisy) - 128).abs() > 415,  # M of sigma 1/4
    "last bit of the float": lambda noisy: noisy.contiguous().view(torch.int32) % 2 != 0,
    "one residue of grey levels": lambda noisy: grey_level(noisy) % 64 == 1,
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_no_lattice_certificate_breaks(rule: Callable[[Tensor], Tensor]) -> None:
    smoothed = make(rule)
    image = torch.full((1, *SHAPE), 128, dtype=torch.uint8)
    one = torch.zeros_like(image)
    one[0, 0, 0, 0] = 1
    neighbours = torch.cat([image - 1, image + 1, image - one, image + one, image + 2])
    certificate = smoothed.certify(image, n=N)
    assert certificate.sound
    distances = ((neighbours.double() - image) / 255).flatten(1).norm(dim=1)
    within = neighbours[distances <= certificate.radii]
    labels = smoothed.predict(within, n=N).labels
    assert ((labels == certificate.labels) | (labels == sf.ABSTAIN)).all()
    if certificate.labels.item() != sf.ABSTAIN:
        assert len(within) >= 4  # the closest are far inside


def test_rules_that_break_floats_do_get_certified_on_the_lattice() -> None:
    """So that the test above tests something."""
    image = torch.full((1, *SHAPE), 128, dtype=torch.uint8)
    labels = [make(rule).certify(image, n=N).labels.item() for rule in RULES.values()]
    assert labels[:4] == [1, 1, 0, 1]
