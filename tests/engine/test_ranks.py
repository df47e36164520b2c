"""Inputs of any rank and range: features, signals, video, in certificates and attacks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smoothfast as sf
from smoothfast import attacks, ops
from smoothfast.noise import Stream, gaussian, stream_key
from smoothfast.ops.laws import gaussian_law

SHAPES = [(7,), (2, 9), (3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 2, 3)]
no_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
LOW, HIGH = -2.0, 3.0
BOUNDS = LOW, HIGH


def inputs(shape: tuple[int, ...], count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.empty(count, *shape).uniform_(LOW, HIGH, generator=generator)


def linear(shape: tuple[int, ...]) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3)).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return net


def smoothed(shape: tuple[int, ...], **options: Any) -> sf.SmoothedClassifier:
    given = {"samples": 8, "runner": "eager", "precision": "fp32", "bounds": None}
    return sf.SmoothedClassifier(linear(shape), 0.5, **given | options)


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_is_that_of_the_elements_in_their_order(shape: tuple[int, ...]) -> None:
    images, rows = inputs(shape), torch.arange(5)
    one = torch.ones(shape[0])
    replicas = ops.noisy_replicas(
        images, rows, rows + 7, rows + 2, stream_key(3, Stream.PREDICT), gaussian_law(0.5), one, 0 * one
    )
    assert replicas.shape == images.shape
    for row in range(5):
        drawn = gaussian(shape, 0.5, 3, row + 7, [row + 2], Stream.PREDICT)[0]
        torch.testing.assert_close(replicas[row], images[row] + drawn, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_and_sums_are_those_of_planes(shape: tuple[int, ...], norm: str) -> None:
    images, slopes = inputs(shape), inputs(shape).flip(0)
    found, wanted = images.clone(), images.clone().view(5, shape[0], 1, -1)
    ops.attack_step(found, images, slopes, norm, 0.3, 0.2, -math.inf, math.inf)
    ops.attack_step(wanted, images.view_as(wanted), slopes.view_as(wanted), norm, 0.3, 0.2, -math.inf, math.inf)
    assert torch.equal(found, wanted.view_as(found))
    moved = (found - images).flatten(1)
    length = moved.abs().amax(1) if norm == "linf" else moved.double().norm(dim=1)
    assert ((length <= 0.2 + 1e-6) & (length > 0.19)).all()
    slots = torch.tensor([0, 1, 0, -1, 1])
    sums = ops.replica_sum(slopes, slots, torch.full((shape[0],), 2.0), 2)
    torch.testing.assert_close(sums, 2 * torch.stack([slopes[0] + slopes[2], slopes[1] + slopes[4]]))


@pytest.mark.parametrize(
    ("shape", "runner"), [*((shape, "eager") for shape in SHAPES), pytest.param((2, 9), "openvino", marks=no_openvino)]
)
def test_certificates_of_every_rank(shape: tuple[int, ...], runner: str) -> None:
    """By a linear base classifier the true probabilities are known: those of the class beside each other one."""
    images, base = inputs(shape), linear(shape)
    certificate = smoothed(shape, runner=runner).certify(images, n0=20, n=400)
    assert not certificate.sound
    weight, logits = base[1].weight.double(), base(images).double()
    for row, label in enumerate(certificate.labels.tolist()):
        if label >= 0:
            rivals = [k for k in range(3) if k != label]
            margins = [(logits[row, label] - logits[row, k]) / (weight[label] - weight[k]).norm() for k in rivals]
            assert certificate.radii[row] <= min(margins)  # the radius of the base classifier, which is linear
    assert (certificate.labels >= 0).sum() >= 3


@pytest.mark.parametrize("bounds", [BOUNDS, None])
def test_predictions_of_every_range(bounds: Any) -> None:
    images = inputs((7,)) if bounds is None else inputs((7,)).clamp(*bounds)
    model = smoothed((7,), bounds=bounds)
    found = model.predict(images, n=100)
    assert torch.equal(found.counts, model.votes(images, 100))
    early = model.predict(images, n=100, method="sequential").labels
    assert torch.equal(early[early >= 0], found.labels[early >= 0])
    assert (early >= 0).any()


@pytest.mark.parametrize("bounds", [None, BOUNDS])
def test_certificates_of_other_ranges_are_replayed(bounds: Any) -> None:
    certificate = smoothed((7,), bounds=bounds).certify(inputs((7,)), n0=20, n=100)
    assert sf.replay(certificate, linear((7,)), inputs((7,))).same


def test_features_have_a_deviation_and_a_normalisation_each() -> None:
    images, sigma = inputs((3,)), (0.1, 0.5, 2.0)
    normalize = ((0.5, 2.0, -1.0), (1.0, 2.0, 0.5))
    model = sf.SmoothedClassifier(
        linear((3,)), sigma, normalize=normalize, bounds=None, runner="eager", precision="fp32"
    )
    rows = torch.arange(4000)
    replicas = model.function(images).replicas(images, (0 * rows, 0 * rows, rows), stream_key(0, Stream.PREDICT))
    mean, std = map(torch.tensor, normalize)
    noise = replicas * std + mean - images[0]
    torch.testing.assert_close(noise.std(0), torch.tensor(sigma), rtol=0.1, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_every_rank(shape: tuple[int, ...]) -> None:
    images = inputs(shape).requires_grad_()
    smoothed(shape).differentiable(4)(images)[:, 0].sum().backward()
    soft, estimate = images.grad, torch.zeros_like(images)
    with torch.no_grad():
        for row in range(len(images)):
            changed = images.detach().clone()
            changed[row] += 1e-2 * soft[row].sign()
            up, down = (smoothed(shape).differentiable(4)(x)[:, 0].sum() for x in (changed, 2 * images - changed))
            estimate[row] = (up - down) / 2e-2
    torch.testing.assert_close(soft.flatten(1).abs().sum(1), estimate.flatten(1)[:, 0], rtol=0.02, atol=1e-4)


ATTACKS: dict[str, Callable[..., Any]] = {
    "PGD": lambda model, **o: attacks.PGD(model, 0.4, steps=3, **o),
    "EPGD l2": lambda model, **o: attacks.EPGD(model, 0.4, steps=3, samples=2, norm="l2", restarts=2, **o),
    "SmoothAdvPGD": lambda model, **o: attacks.SmoothAdvPGD(model, 0.4, steps=3, samples=8, gradient_free=True, **o),
    "DDN": lambda model, **o: attacks.DDN(model, steps=5, levels=None, **o),
    "CW": lambda model, **o: attacks.CW(model, c=1.0, steps=20, search_steps=2, lr=0.1, **o),
    "NAttack": lambda model, **o: attacks.NAttack(model, 0.4, steps=3, population=20, **o),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[3]])
@pytest.mark.parametrize("bounds", [BOUNDS, None])
def test_attacks_stay_in_range_and_ball(shape: tuple[int, ...], name: str, bounds: Any) -> None:
    model, images = smoothed(shape, bounds=bounds), inputs(shape)
    images[0] = LOW
    labels = model(images).argmax(1)
    if bounds is None and name in ("CW", "NAttack"):
        with pytest.raises(ValueError, match=r"bounds is None; .* give bounds=\(low, high\)"):
            ATTACKS[name](model)
        return
    attack = ATTACKS[name](model, runner="eager")
    found = attack(images, labels)
    assert found.shape == images.shape
    assert not torch.equal(found, images)
    if bounds is not None:
        assert found.min() >= LOW
        assert found.max() <= HIGH
    if hasattr(attack, "eps"):
        assert sf.evaluation.distances(images, found, getattr(attack, "norm", "linf"), bounds).max() <= 0.4 * (1 + 1e-6)
    before, after = (model.scores(x, 400).gather(1, labels[:, None]).mean() for x in (images, found))
    assert after < before + 0.01


def test_a_plain_model_is_attacked_in_its_range() -> None:
    images = inputs((7,))
    found = attacks.PGD(linear((7,)), 10.0, steps=3, bounds=BOUNDS)(images, [0] * 5)
    assert found.min() == LOW
    assert found.max() == HIGH
    assert attacks.PGD(linear((7,)), 10.0, steps=3, bounds=None)(images, [0] * 5).max() > HIGH


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "range": (lambda: smoothed((7,), bounds=(1, 0)), "bounds is (1, 0); it must be (low, high)"),
    "no numbers": (lambda: smoothed((7,), bounds=(0, math.inf)), "bounds is (0, inf); it must be (low, high), finite"),
    "clip": (lambda: smoothed((7,), bounds=BOUNDS, clip=True), "clip is True and bounds is"),
    "beyond": (lambda: smoothed((7,), bounds=BOUNDS).votes(2 * inputs((7,))), "float images must lie in -2 .. 3"),
    "bytes": (
        lambda: smoothed((7,)).votes(torch.zeros(1, 7, dtype=torch.uint8)),
        "images are uint8, and bounds is None",
    ),
    "other bounds": (
        lambda: attacks.PGD(smoothed((7,)), 0.1, bounds=BOUNDS),
        "those of the SmoothedClassifier are None",
    ),
    "levels": (lambda: attacks.DDN(smoothed((7,))), "levels is 256 and bounds is None"),
    "squares": (
        lambda: attacks.Square(smoothed((7,)), 0.1)(inputs((7,)), [0] * 5),
        "Square changes squares of [N, C, H, W]",
    ),
    "rank": (
        lambda: smoothed((7,)).votes(torch.zeros(7)),
        "images have shape (7,); they must be [N, C, H, W], or [N, ...]",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
