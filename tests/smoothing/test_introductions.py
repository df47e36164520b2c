"""Objects that introduce themselves: by the call that makes them again, or by what they hold; and hints of theirs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import smoothfast as sf
from smoothfast import attacks, modules
from smoothfast.normalization import statistics_of
from smoothfast.runners import choice

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()


def make(**options: Any) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(network(), **({"sigma": 0.25, "num_classes": 3} | options))


def again(thing: Any, base: nn.Module) -> Any:
    """What the words of an object make."""
    names = {name: getattr(room, name) for room in (sf, attacks) for name in room.__all__}
    return eval(repr(thing), {**names, "Sequential": lambda *_: base})


SETTINGS: list[dict[str, Any]] = [
    {},
    {"sigma": [0.1, 0.2, 0.3], "samples": 8, "voting": (1, 0.5), "seed": 3, "precision": "fp32", "max_batch": 7},
    {"voting": "soft", "normalize": statistics_of("cifar10"), "noise": "gaussian", "runner": "eager", "clip": True},
    {"bounds": (-1.0, 1.0), "deterministic": True, "num_classes": None},
]


@pytest.mark.parametrize("options", SETTINGS, ids=range(len(SETTINGS)))
def test_a_classifier_says_how_it_is_made(options: dict[str, Any]) -> None:
    smoothed = make(**options)
    twin = again(smoothed, smoothed.base)
    assert repr(twin) == repr(smoothed)
    names = "samples seed noise precision max_batch runner clip bounds deterministic normalize known_classes _rule"
    assert all(getattr(twin, name) == getattr(smoothed, name) for name in names.split())
    assert torch.equal(twin.sigma, smoothed.sigma)
    soft = smoothed.differentiable(samples=4)
    assert repr(again(soft, smoothed.base)) == repr(soft) == f"SoftClassifier({smoothed!r}, samples=4)"


def test_words_are_few() -> None:
    assert repr(make()) == "SmoothedClassifier(Sequential(...), sigma=0.25, num_classes=3)"
    assert repr(sf.SmoothedClassifier(torch.relu, 0.5)) == "SmoothedClassifier(relu, sigma=0.5)"
    assert repr(sf.Smooth(network(), 3, 0.5)) == "Smooth(Sequential(...), num_classes=3, sigma=0.5)"


ATTACKS = [
    lambda model: attacks.FGSM(model, norm="l2", eps=0.5),
    attacks.PGD,
    lambda model: attacks.PGD(model, 0.1, 0.02, 3, False, loss="margin", sigma=0.5, seed=3, precision="bf16"),
    lambda model: attacks.EPGD(model, samples=4, max_batch=9, runner="eager", sigma=[0.1, 0.2, 0.3]),
    lambda model: attacks.SmoothAdvPGD(model, fresh_noise=True, gradient_free=True, sigma=0.3),
    lambda model: attacks.MultiTargetedPGD(model, targets=2),
    lambda model: attacks.DDN(model, 5, max_norm=0.3),
    attacks.CW,
    lambda model: attacks.NAttack(model, population=4, search_sigma=0.2),
    lambda model: attacks.Square(model, queries=9, precision="bf16"),
]


@pytest.mark.parametrize("make_attack", ATTACKS)
@pytest.mark.parametrize("smoothed", [False, True])
def test_an_attack_says_how_it_is_made(make_attack: Any, smoothed: bool) -> None:
    base = network()
    model = sf.SmoothedClassifier(base, 0.25, 3, precision="fp32") if smoothed else base
    attack = make_attack(model)
    twin = again(attack, base)
    plain = (int, float, str, tuple, bool, type(None))
    for name, value in vars(attack).items():
        if isinstance(value, plain):
            assert getattr(twin, name) == value, name
    assert (twin.law.sigma, twin.loss.__qualname__) == (attack.law.sigma, attack.loss.__qualname__)


def test_attacks_with_few_words() -> None:
    epgd = attacks.EPGD(make(), eps=0.1, steps=3)
    assert repr(epgd) == f"EPGD({make()!r}, eps=0.1, steps=3)"
    assert repr(attacks.Transfer(network(), epgd)) == f"Transfer(Sequential(...), {epgd!r})"


def test_results_say_what_they_hold() -> None:
    smoothed = make(precision="fp32", runner="eager")
    certificate = smoothed.certify(IMAGES, n0=8, n=100)
    radii = certificate.radii
    assert repr(certificate) == (
        f"<Certificate of 3 images: 3 certified (100.0%), radii {radii.min():.4g} .. {radii.max():.4g}, 324 samples, "
        "sigma 0.25, alpha 0.001, sound>"
    )
    nothing = smoothed.certify(IMAGES[:1] / 255, n0=8, n=11)
    assert repr(nothing).startswith("<Certificate of 1 image: 0 certified (0.0%), 19 samples, ")
    assert repr(nothing).endswith("not sound>")
    assert "of 0 images: 0 certified, 0 samples" in repr(smoothed.certify(IMAGES[:0], n=100))
    assert repr(smoothed.predict(IMAGES, n=100)) == "<Prediction of 3 images: 3 predicted, 300 samples>"


# ---- hints -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has said nothing yet."""
    monkeypatch.setattr(modules, "_HINTED", set())


def said(act: Callable[[], Any]) -> list[str]:
    """The warnings of an act."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(each.message) for each in caught]


@pytest.mark.usefixtures("fresh")
def test_float_images_of_8_bits_are_told_once_what_they_cost() -> None:
    smoothed = make(precision="fp32", runner="eager")
    levels = torch.arange(48, dtype=torch.float32).view(1, 3, 4, 4) / 255
    for images in (levels.byte(), levels + 0.2 / 255, levels[:0]):  # sound; of more bits; none
        assert said(lambda images=images: smoothed.certify(images, n0=8, n=100)) == []
    assert said(lambda: make(noise="gaussian").certify(levels, n0=8, n=100)) == []  # and of uint8 no more sound
    assert said(lambda: make(bounds=(-1, 1)).certify(levels, n0=8, n=100)) == []  # which are no pixels
    (told,) = said(lambda: smoothed.certify(levels, n0=8, n=100))
    assert "(255 * images).round().to(torch.uint8)" in told
    assert smoothed.certify((255 * levels).round().to(torch.uint8), n0=8, n=100).sound
    assert said(lambda: make().certify(levels, n0=8, n=100)) == []


@pytest.mark.usefixtures("fresh")
def test_a_far_faster_runner_for_the_whole_call_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(runner: str, workload: Any, passes: int, *_: Any) -> float:
        return 0.01 * passes if runner == "eager" else 15 + 0.001 * passes

    monkeypatch.setattr(choice, "seconds", seconds)
    monkeypatch.setattr(choice, "installed", lambda *_: ["eager", "compiled"])
    few, many = (IMAGES[:1].expand(count, -1, -1, -1) for count in (10, 60))
    smoothed = make(precision="fp32")
    assert said(lambda: smoothed.votes(few, 100)) == []  # 10 s, or 16
    assert said(lambda: smoothed.predict(many, 1000, method="sequential")) != []  # of about 200 samples: 120 s, or 27
    modules._HINTED.clear()
    (told,) = said(lambda: smoothed.votes(many, 100))  # 60 s, or 21
    assert "runner 'eager' was chosen by the work of one image" in told
    assert "runner='compiled', and 60 images of 100 samples take half the time" in told
    assert said(lambda: smoothed.certify(many, n0=10, n=100)) == []  # it was said
    modules._HINTED.clear()
    assert said(lambda: make(precision="fp32", runner="eager").votes(many, 100)) == []
