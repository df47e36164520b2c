"""Certificates computed anew."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.classifiers import Pixels
from torch import nn

import smoothfast as sf

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
OPTIONS = [
    {},
    {"method": "sequential", "radius": 0.01, "labels": [4, 0, 1, 1]},
    {"method": "tolerance", "tolerance": 0.5, "n": 2000, "image_ids": [7, 1, 2, 3]},
    {"method": "grid", "radii": (0, 0.01, 0.02), "beta": 0.1, "bound": "cohen"},
    {"randomize": True, "bound": "cohen"},
]


def certified(seed: int | None = 3, **options: Any) -> sf.Certificate:
    smoothed = sf.SmoothedClassifier(Pixels(5).eval(), 0.1, 5, seed=seed, precision="fp32", max_batch=16)
    return smoothed.certify(IMAGES, **{"n0": 10, "n": 200} | options)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_replay_gives_the_same_bits(options: dict[str, Any]) -> None:
    certificate = certified(seed=None, **options)
    found = sf.replay(certificate, Pixels(5).eval(), IMAGES)
    assert found.same
    assert (found.differing, found.reasons) == ([], [])
    assert torch.equal(found.certificate.counts, certificate.counts)


def test_what_differs_is_told_and_why() -> None:
    certificate = certified()
    counts = certificate.counts.clone()
    counts[2] += torch.tensor([1, -1, 0, 0, 0])
    edited = dataclasses.replace(certificate, counts=counts)
    found = sf.replay(edited, Pixels(5).eval(), IMAGES)
    assert (found.same, found.differing, found.reasons) == (False, [2], [])

    elsewhere = certificate.meta["environment"] | {"torch": "1.0"}
    edited = dataclasses.replace(certificate, meta=certificate.meta | {"environment": elsewhere})
    found = sf.replay(edited, Pixels(5).eval(), IMAGES)
    assert found.same
    assert found.reasons == [f'torch was "1.0", is "{torch.__version__}"']


def test_other_weights_are_told() -> None:
    def base(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()

    with torch.random.fork_rng():
        smoothed = sf.SmoothedClassifier(base(0), 0.1, 5, precision="fp32", max_batch=16)
        found = sf.replay(smoothed.certify(IMAGES, n0=10, n=200), base(1), IMAGES)
    assert not found.same
    (reason,) = found.reasons
    assert reason.startswith("weights_sha256 was ")


def test_rows_that_depend_on_others_are_told() -> None:
    certificate = certified()
    edited = dataclasses.replace(certificate, meta=certificate.meta | {"row_function": "up to rounding"})
    assert sf.replay(edited, Pixels(5).eval(), IMAGES).reasons == [
        'logits were a function of their row "up to rounding", and rows meet others on other cores'
    ]


def test_what_cannot_be_replayed_is_refused() -> None:
    certificate = certified()
    with pytest.raises(ValueError, match="images are 3; they must be the 4 of the certificate"):
        sf.replay(certificate, Pixels(5), IMAGES[:3])
    bare = dataclasses.replace(certificate, meta={"n": 200})
    with pytest.raises(ValueError, match=r"certificate\.meta lacks n0, alpha, .*micro_batch"):
        sf.replay(bare, Pixels(5), IMAGES)
