"""Cohen's API: their formulas on given counts, and certificates of a base classifier that is known exactly."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest, norm
from torch import Tensor, nn

import smoothfast as sf
from smoothfast.noise import Stream

pytestmark = pytest.mark.usefixtures("one_thread")
SIGMA = 0.5
IMAGE = torch.full((3, 4, 4), 0.55)
Given = Callable[..., sf.Smooth]


class Threshold(nn.Module):
    """Class 1 where the mean of the pixels is above 1/2: under noise of deviation sigma its probability is
    Phi(distance / sigma), with the L2 distance of the image from the classes' border, which is the exact radius."""

    def forward(self, x: Tensor) -> Tensor:
        above = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-above, above], 1)


def distance(image: Tensor) -> float:
    return (image.double().mean().item() - 0.5) * math.sqrt(image.numel())


def make(seed: int = 0) -> sf.Smooth:
    return sf.Smooth(Threshold().eval(), 2, SIGMA, seed)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """A Smooth whose samples of each stage fall as given, whatever the image."""

    def build(**stages: list[int]) -> sf.Smooth:
        counts = {Stream[name.upper()]: np.array(votes, np.int64) for name, votes in stages.items()}
        monkeypatch.setattr(
            sf.Smooth, "_votes", lambda self, x, n, alpha, batch_size: lambda count, stream: counts[stream]
        )
        return sf.Smooth(nn.Identity(), 3, SIGMA)

    return build


# ---- the formulas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize(
    ("select", "estimate"),
    [
        ([0, 90, 10], [0, 990, 10]),
        ([50, 50, 0], [700, 300, 0]),  # a tie goes to the lowest class
        ([0, 0, 1], [0, 0, 1000]),
        ([10, 5, 0], [100, 900, 0]),  # the class selected is certified or none is
        ([10, 5, 0], [500, 500, 0]),
        ([10, 5, 0], [0, 500, 500]),
        ([10, 5, 0], [540, 460, 0]),
        ([10, 5, 0], [551, 449, 0]),
        ([10, 5, 0], [990, 0, 0]),  # 10 more without a class
    ],
)
def test_certify(given: Given, select: list[int], estimate: list[int], alpha: float) -> None:
    top, n = select.index(max(select)), 1000
    successes = estimate[top]
    lower = beta.ppf(alpha, successes, n - successes + 1) if successes else 0.0
    expected = (top, SIGMA * norm.ppf(lower)) if lower >= 0.5 else (sf.ABSTAIN, 0.0)
    found = given(select=select, estimate=estimate).certify(IMAGE, 100, n, alpha, 400)
    assert found == expected
    assert [type(value) for value in found] == [int, float]
    # The same bound from SciPy's test of a proportion.
    assert binomtest(successes, n, alternative="greater").proportion_ci(1 - alpha).low == pytest.approx(lower)


@pytest.mark.parametrize(
    ("n", "alpha", "radius"), [(100_000, 0.001, 3.8115), (100_000, 0.01, 3.9105), (10_000, 0.001, 3.1986)]
)
def test_largest_radii_as_published(given: Given, n: int, alpha: float, radius: float) -> None:
    _, found = given(select=[100, 0, 0], estimate=[n, 0, 0]).certify(IMAGE, 100, n, alpha, 400)
    assert found / SIGMA == pytest.approx(radius, abs=5e-5)


def test_a_bound_of_exactly_one_half_certifies_radius_zero(given: Given) -> None:
    assert given(select=[0, 1, 0], estimate=[0, 1, 0]).certify(IMAGE, 1, 1, 0.5, 1) == (1, 0.0)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize(
    "counts", [[0, 100, 0], [50, 50, 0], [40, 20, 40], [60, 40, 0], [0, 33, 67], [10, 0, 0], [0, 0, 11], [1, 0, 0]]
)
def test_predict(given: Given, counts: list[int], alpha: float) -> None:
    second, first = sorted(counts)[-2:]
    significant = binomtest(first, first + second, 0.5).pvalue <= alpha
    found = given(predict=counts).predict(IMAGE, sum(counts), alpha, 400)
    assert found == (counts.index(first) if significant else sf.ABSTAIN)
    assert type(found) is int


def test_abstain() -> None:
    assert sf.Smooth.ABSTAIN == sf.ABSTAIN == -1


# ---- with samples ----------------------------------------------------------------------------------------------------


def test_radii_stay_within_the_exact_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth, close = make(), 0
    for mean in torch.linspace(0.3, 0.7, 21).tolist():
        image = (mean + 0.1 * torch.randn((3, 4, 4), generator=generator)).clamp(0, 1)
        label, radius = smooth.certify(image, 20, 1000, 0.001, 200)
        exact = abs(distance(image))
        if label != sf.ABSTAIN:
            assert label == (distance(image) > 0)
            assert 0 <= radius <= exact
        close += radius >= 0.6 * exact
    assert close > 10


def test_votes_have_the_probability_that_is_known() -> None:
    n, smooth = 4000, make()
    votes = smooth._votes(IMAGE, n, 0.001, 500)(n, Stream.ESTIMATE)
    assert votes.sum() == n
    assert binomtest(int(votes[1]), n, norm.cdf(distance(IMAGE) / SIGMA)).pvalue > 1e-4


def test_predict_finds_the_class_or_abstains() -> None:
    smooth = make()
    labels = [smooth.predict(torch.full((3, 4, 4), mean), 200, 0.001, 100) for mean in (0.35, 0.5, 0.65)]
    assert labels == [0, sf.ABSTAIN, 1]


def test_arguments_stand_where_cohen_has_them() -> None:
    assert list(inspect.signature(sf.Smooth).parameters)[:3] == ["base_classifier", "num_classes", "sigma"]
    for method, names in (("certify", "self x n0 n alpha batch_size"), ("predict", "self x n alpha batch_size")):
        assert " ".join(inspect.signature(getattr(sf.Smooth, method)).parameters) == names
    by_name = make().certify(x=IMAGE, n0=20, n=100, alpha=0.01, batch_size=50)
    assert make().certify(IMAGE, 20, 100, 0.01, 50) == by_name


def radii(smooth: sf.Smooth, batch_size: int = 100) -> list[tuple[int, float]]:
    return [smooth.certify(IMAGE, 20, 500, 0.01, batch_size) for _ in range(5)]


def test_calls_draw_anew_and_objects_repeat() -> None:
    first = radii(make())
    assert len(set(first)) > 1
    assert radii(make()) == first
    assert radii(make(), batch_size=33) == first
    assert radii(make(seed=1)) != first


def test_the_generator_of_torch_and_the_mode_are_left_alone() -> None:
    smooth, state = make(), torch.get_rng_state()
    smooth.base_classifier.train()
    with pytest.warns(UserWarning, match="train mode"):
        smooth.predict(IMAGE, 20, 0.01, 10)
    assert smooth.base_classifier.training
    assert torch.equal(torch.get_rng_state(), state)


# ---- bad input -------------------------------------------------------------------------------------------------------


class Speechless(nn.Module):
    """Without a finite logit, except class 1 for the brightest replicas."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        return Threshold()(x).where(x[:, 0, 0, :1] > self.least, math.nan)


def test_a_base_without_finite_logits_certifies_nothing() -> None:
    assert sf.Smooth(Speechless(math.inf).eval(), 2, SIGMA).certify(IMAGE, 20, 100, 0.01, 50) == (sf.ABSTAIN, 0.0)


@pytest.mark.parametrize("least", [math.inf, 1.0])
def test_votes_without_a_class_are_rivals(least: float) -> None:
    smooth = sf.Smooth(Speechless(least).eval(), 2, SIGMA)
    assert smooth.predict(IMAGE + 0.2, 500, 0.05, 50) == sf.ABSTAIN


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE[None], r"turns 2 images into \(2, 2, 4\)"),
        (IMAGE + 0.5, r"range over 1\.05 \.\. 1\.05"),
        (IMAGE / 0 * 0, "not finite"),
    ],
)
def test_images_that_are_none(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().certify(image, 20, 100, 0.01, 50)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="n0 is 0; it must be at least 1"):
        make().certify(IMAGE, 0, 100, 0.01, 50)
    for call in (lambda: make().certify(IMAGE, 10, 0, 0.01, 50), lambda: make().predict(IMAGE, 0, 0.01, 50)):
        with pytest.raises(ValueError, match="n is 0; it must be at least 1"):
            call()


def test_no_more_rows_in_a_pass_than_samples() -> None:
    rows: list[int] = []
    base = Threshold().eval()
    base.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    smooth = sf.Smooth(base, 2, SIGMA)
    smooth.certify(IMAGE, 10, 50, 0.001, 1000)
    assert max(rows) == 50
    smooth.predict(IMAGE, 20, 0.001, 1000)
    assert rows[-1] == 20


@pytest.mark.parametrize(
    ("options", "name"), [({"alpha": 2}, "alpha"), ({"alpha": -1}, "alpha"), ({"batch_size": -3}, "batch_size")]
)
def test_settings_that_are_none(options: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make().certify(IMAGE, **{"n0": 20, "n": 100, "alpha": 0.01, "batch_size": 50} | options)


def test_another_sigma_is_that_of_noise_and_radius() -> None:
    smooth, twin = make(), sf.Smooth(Threshold().eval(), 2, 4 * SIGMA)
    try:
        smooth.sigma = 4 * SIGMA
    except AttributeError:
        return  # to refuse is as good
    assert radii(smooth) == radii(twin)
