"""DDN and CW: they reach the next border of a linear classifier, and keep what they promise on the way."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from helpers.linear import Linear, check_modes, check_pure, greys, linear, pixels, predicted, squares
from torch import Tensor, nn

import smoothfast as sf
from smoothfast.attacks import CW, DDN, Attack
from smoothfast.noise import Stream, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

# Settings that come close, with how far beyond the least distance they may end, and fast ones.
CLOSE: dict[str, tuple[Callable[..., Attack], float]] = {
    "ddn": (partial(DDN, steps=150, levels=None), 5e-4),
    "cw": (partial(CW, c=1e-2, steps=100, search_steps=8), 2e-3),
}
QUICK: dict[str, Callable[..., Attack]] = {
    "ddn": partial(DDN, steps=20),
    "cw": partial(CW, c=0.1, steps=25, search_steps=3),
}
close = pytest.mark.parametrize(("make", "slack"), CLOSE.values(), ids=CLOSE)
quick = pytest.mark.parametrize("make", QUICK.values(), ids=QUICK)


def distances(out: Tensor, images: Tensor) -> Tensor:
    return torch.tensor(squares(out, pixels(images)), dtype=torch.float64).sqrt()


def smoothed(model: Linear, **options: Any) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(model, sigma=0.25, num_classes=len(model.bias), precision="fp32", **options)


def own_samples(images: Tensor, samples: int, seed: int) -> Tensor:
    """[N, M, C, H, W], what an attack sees of images 0..N-1 under noise of sigma 0.25."""
    drawn = [gaussian(images.shape[1:], 0.25, seed, i, range(samples), Stream.ATTACK) for i in range(len(images))]
    return images[:, None] + torch.stack(drawn)


# ---- the least distance ----------------------------------------------------------------------------------------------


@close
@pytest.mark.parametrize("classes", [2, 3])
def test_the_next_border_is_reached(make: Callable[..., Attack], slack: float, classes: int) -> None:
    model, images = linear(classes), greys(8)
    labels = predicted(model, pixels(images))
    out, least = make(model)(images, labels), model.distances(pixels(images), labels)
    assert (predicted(model, out) != labels).all()
    found = distances(out, images)
    assert (found >= least * (1 - 1e-6)).all()
    assert (found <= least + slack).all()


@close
@pytest.mark.parametrize("seed", [0, 1])
def test_the_least_distance_of_a_smoothed_classifier(make: Callable[..., Attack], slack: float, seed: int) -> None:
    """With two classes all samples move along one direction, and the votes turn with the fourth of eight, or with the
    fifth: ties are of class 0."""
    model, images, samples = linear(), greys(8, 0.25), 8
    labels = predicted(model, pixels(images))
    out = make(smoothed(model), samples=samples, seed=seed)(images, labels)
    seen = own_samples(pixels(images), samples, seed).flatten(0, 1)
    margins = model.margins(seen, labels.repeat_interleave(samples)).view(-1, samples).sort(1).values
    turning = margins.gather(1, 4 - labels[:, None])[:, 0]
    least = (turning / model.slopes(labels, 2).amin(1)).clamp(min=0)
    assert 0 < (least > 0).sum() < len(least) or (least > 0).all()
    found = distances(out, images)
    assert (found >= least * (1 - 1e-6)).all()
    assert (found <= least + slack).all()
    votes = predicted(model, own_samples(out, samples, seed).flatten(0, 1)).view(-1, samples)
    assert ((votes == labels[:, None]).sum(1) <= 3 + labels).all()


@close
def test_towards_the_other_class(make: Callable[..., Attack], slack: float) -> None:
    model, images = linear(), greys(6)
    labels = predicted(model, pixels(images))
    attack = make(model)
    attack.set_mode_targeted_by_label()
    out = attack(images, 1 - labels)
    assert torch.equal(predicted(model, out), 1 - labels)
    assert (distances(out, images) <= model.distances(pixels(images), labels) + slack).all()


@quick
def test_modes(make: Callable[..., Attack]) -> None:
    check_modes(make(linear(3)), greys(6), linear(3), 3)


@quick
@pytest.mark.parametrize("seed", range(3))
def test_what_is_moved_is_adversarial_and_in_range(make: Callable[..., Attack], seed: int) -> None:
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).mul(1.4).sub(0.2).clamp(0, 1)
    model = linear(3, seed)
    labels = predicted(model, images)
    out = make(model)(images, labels)
    assert out.dtype == torch.float32
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    moved = (out != images).flatten(1).any(1)
    assert moved.any()
    assert (predicted(model, out) != labels)[moved].all()


@pytest.mark.parametrize(("kappa", "targeted"), [(0.3, True), (2.0, False)])
def test_kappa_is_the_margin_beyond_the_border(kappa: float, targeted: bool) -> None:
    model, images = linear(), greys(6)
    labels = predicted(model, pixels(images))
    attack = CW(model, 1e-2, kappa, 100, search_steps=8)
    if targeted:
        attack.set_mode_targeted_by_label()
    out = attack(images, 1 - labels if targeted else labels)
    assert (model.margins(out, 1 - labels) >= kappa - 1e-5).all()
    least = model.distances(pixels(images), labels) + kappa / model.slopes(labels, 2).amin(1)
    assert (distances(out, images) <= least + 2e-3).all()


def test_torchattacks_settings_of_cw() -> None:
    model, images = linear(3), greys(6)
    labels = predicted(model, pixels(images))
    out = CW(model, 1, 0, 50, 0.01, search_steps=1)(images, labels)
    assert (predicted(model, out) != labels).all()


# ---- DDN: the grid and the ball --------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_results_lie_on_the_grid(levels: int) -> None:
    model, images = linear(), greys(8)
    labels = predicted(model, pixels(images))
    out = DDN(model, 50, levels=levels)(images, labels)
    fooled = predicted(model, out) != labels
    assert fooled.all()
    steps = (out.double() * (levels - 1)).round()
    assert torch.equal(out, (steps / (levels - 1)).float())
    assert levels < 256 or torch.equal(out, pixels(steps.byte()))


def test_rounding_costs_little() -> None:
    model, images = linear(), greys(8)
    labels = predicted(model, pixels(images))
    least = model.distances(pixels(images), labels)
    found = distances(DDN(model, 150)(images, labels), images)
    assert (found <= 1.05 * least + 1 / 255).all()


@pytest.mark.parametrize("max_norm", [1e-3, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("levels", [None, 256])
def test_no_result_is_beyond_max_norm(max_norm: float, levels: int | None) -> None:
    model, images = linear(3), greys(12, 0.05)
    labels = predicted(model, pixels(images))
    out = DDN(model, 60, levels=levels, max_norm=max_norm)(images, labels)
    assert max(squares(out, pixels(images))) <= Fraction(max_norm) ** 2
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    free = DDN(model, 60, levels=levels)(images, labels)
    within = distances(free, images) < max_norm * (1 - 1e-6)
    assert torch.equal(out[within], free[within])
    assert (distances(out, images)[~within] >= max_norm * (1 - 1e-3)).all()


@pytest.mark.parametrize("images", [greys(4), pixels(greys(4))], ids=["uint8", "float"])
def test_max_norm_0_returns_the_images(images: Tensor) -> None:
    out = DDN(linear(), 10, max_norm=0)(images, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(out, images if images.is_floating_point() else pixels(images))


# ---- what is not moved -----------------------------------------------------------------------------------------------


@quick
def test_images_that_are_adversarial_are_returned_after_one_look(make: Callable[..., Attack]) -> None:
    model, images = linear(3), greys(6)
    labels = (predicted(model, pixels(images)) + 1) % 3
    attack = make(smoothed(model, samples=4), sigma=1e-6, samples=4)
    assert torch.equal(attack(images, labels), pixels(images))
    assert (attack.gradients, attack.forwards) == (24, 24)


@quick
def test_where_nothing_is_found_images_are_returned(make: Callable[..., Attack]) -> None:
    model, images = Linear(torch.zeros(3, 48), torch.tensor([0.0, 1.0, 0.0])), greys(5)
    assert torch.equal(make(model)(images, [1] * 5), pixels(images))


@quick
def test_no_images(make: Callable[..., Attack]) -> None:
    assert make(linear())(torch.zeros(0, 3, 4, 4), []).shape == (0, 3, 4, 4)


# ---- a function of seed, image id and image --------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("noisy", [False, True])
def test_results_are_pure(make: Callable[..., Attack], noisy: bool) -> None:
    """Of images that need many steps, few, or none."""
    model, images = linear(3), torch.cat([greys(3), greys(2, 0.01), greys(2, 0.45)])
    labels = predicted(model, pixels(images))
    labels[2] = (labels[2] + 1) % 3
    options: dict[str, Any] = {"samples": 3} if noisy else {}
    target: nn.Module = smoothed(model) if noisy else model
    check_pure(make(target, **options), images, labels)


@quick
def test_seed_and_image_id_choose_the_samples(make: Callable[..., Attack]) -> None:
    model, images = linear(3), greys(3)
    labels = predicted(model, pixels(images))
    attack = make(smoothed(model), samples=5)
    out = attack(images, labels)
    assert not torch.equal(attack(images, labels, image_ids=[7, 8, 9]), out)
    assert not torch.equal(make(smoothed(model), samples=5, seed=1)(images, labels), out)


@quick
def test_micro_batches_do_not_show(make: Callable[..., Attack]) -> None:
    model, images = linear(3), greys(5)
    labels = predicted(model, pixels(images))
    outs = [make(smoothed(model), samples=8, max_batch=rows)(images, labels) for rows in (8, 64)]
    assert torch.equal(*outs)


# ---- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 3])
def test_counts(samples: int) -> None:
    model, images = linear(3), greys(5)
    labels = predicted(model, pixels(images))
    labels[0] = (labels[0] + 1) % 3  # adversarial as it is
    looks = (4 * 7 + 1) * samples
    attack = DDN(model, 7, samples=samples)
    attack(images, labels)
    assert (attack.gradients, attack.forwards) == (looks, looks)
    looks = (4 * 7 * 2 + 1) * samples
    attack = CW(model, steps=7, samples=samples, search_steps=2, abort_early=False)
    attack(images, labels)
    assert (attack.gradients, attack.forwards) == (looks, looks)


def test_cw_leaves_a_weight_that_leads_nowhere() -> None:
    """After the first tenth of the steps, and the step that shows it."""
    model = Linear(torch.zeros(2, 48), torch.tensor([1.0, 0.0]))
    attack = CW(model, steps=20, search_steps=3)
    attack(greys(4), [0] * 4)
    assert attack.gradients == 4 * 3 * 3


def test_arithmetic_is_fp32_if_not_said_otherwise() -> None:
    assert DDN(linear()).precision == CW(linear()).precision == "fp32"
    assert DDN(linear(), precision="bf16").precision == "bf16"


# ---- complaints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: DDN(model, steps=0), "steps is 0; it must be at least 1"),
        (lambda model: DDN(model, gamma=0.0), "gamma is 0.0; it must lie between 0 and 1"),
        (lambda model: DDN(model, gamma=1.0), "gamma is 1.0; it must lie between 0 and 1"),
        (lambda model: DDN(model, init_norm=0.0), "init_norm is 0.0; it must be positive and finite"),
        (lambda model: DDN(model, levels=1), "levels is 1; it must be at least 2"),
        (lambda model: DDN(model, max_norm=-1.0), "max_norm is -1.0; it must be at least 0 and finite"),
        (lambda model: DDN(model, max_norm=float("nan")), "max_norm is nan; it must be at least 0 and finite"),
        (lambda model: DDN(model, samples=0), "samples is 0; it must be at least 1"),
        (lambda model: CW(model, c=0.0), "c is 0.0; it must be positive and finite"),
        (lambda model: CW(model, kappa=-0.5), "kappa is -0.5; it must be at least 0 and finite"),
        (lambda model: CW(model, steps=0), "steps is 0; it must be at least 1"),
        (lambda model: CW(model, lr=float("inf")), "lr is inf; it must be positive and finite"),
        (lambda model: CW(model, search_steps=0), "search_steps is 0; it must be at least 1"),
        (lambda model: CW(model, samples=0), "samples is 0; it must be at least 1"),
    ],
)
def test_bad_arguments(make: Callable[[nn.Module], Attack], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(linear())
