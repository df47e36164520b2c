"""What an attack has achieved, against definitions in a line of NumPy, SciPy or torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from smoothfast import ABSTAIN, SmoothedClassifier
from smoothfast.engine import BaseFunction, Gradients
from smoothfast.evaluation import accuracy, base_votes, distances
from smoothfast.noise import gaussian_law
from smoothfast.smoothing.results import winners

pytestmark = pytest.mark.usefixtures("one_thread")

STATISTICS = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture
def base() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 4))


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (9, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def one_hot(classes: list[int]) -> Tensor:
    return nn.functional.one_hot(torch.tensor(classes), 3)


# ---- accuracy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (7, 10), (1, 1), (148, 200), (9_990, 10_000)])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_intervals_are_those_of_clopper_and_pearson(correct: int, count: int, level: float) -> None:
    labels = [1] * count
    found = accuracy(one_hot([1] * correct + [2] * (count - correct)), labels, level)
    exact = binomtest(correct, count).proportion_ci(level, "exact")
    assert (found.correct, found.count, found.share) == (correct, count, correct / count)
    assert (found.low, found.high) == (pytest.approx(exact.low, abs=1e-8), pytest.approx(exact.high, abs=1e-8))
    assert found.low <= found.share <= found.high


def test_the_level_is_095() -> None:
    votes, labels = one_hot([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2])
    assert accuracy(votes, labels) == accuracy(votes, labels, 0.95)
    assert str(accuracy(votes, labels)) == "0.750 (0.194 .. 0.994)"


def test_most_votes_elect() -> None:
    votes = torch.tensor([[3, 5, 4], [4, 1, 4], [0, 0, 0], [0, 0, 9]])
    assert winners(votes).tolist() == [1, 0, ABSTAIN, 2]
    assert accuracy(votes, [1, 0, 0, 2]).correct == 3  # what nothing has voted for is not correct
    assert accuracy(votes, [1, 2, 1, 0]).correct == 1


@pytest.mark.parametrize(
    ("votes", "labels", "level", "part"),
    [
        (one_hot([0, 1]), [0], 0.95, r"votes are \(2, 3\) and labels \(1,\); they must be"),
        (torch.zeros(3, dtype=torch.int64), [0, 1, 2], 0.95, r"votes are \(3,\)"),
        (torch.zeros(0, 3, dtype=torch.int64), [], 0.95, "there are no images"),
        (one_hot([0]), [0], 1.0, "level is 1.0; it must lie between 0 and 1"),
        (one_hot([0]), [0], 0.0, "level is 0.0"),
        (one_hot([0]), [0], float("nan"), "level is nan"),
    ],
)
def test_accuracy_complains(votes: Tensor, labels: list[int], level: float, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        accuracy(votes, labels, level)


# ---- the base classifier ---------------------------------------------------------------------------------------------


def test_base_votes_are_the_classes_of_a_plain_pass(base: nn.Module, images: Tensor) -> None:
    smoothed = SmoothedClassifier(base, 0.5, 4, normalize=STATISTICS, precision="bf16")
    pixels = images.float() / 255
    with torch.no_grad():
        base.eval()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS)
        normalised, plain = base((pixels - mean) / std).argmax(1), base(pixels).argmax(1)
        base.train()
    assert len(set(normalised.tolist())) > 1
    assert normalised.tolist() != plain.tolist()
    for given in (images, pixels):
        votes = base_votes(smoothed, given)
        assert votes.dtype == torch.int64
        assert votes.sum(1).tolist() == [1] * 9
        assert votes.argmax(1).tolist() == normalised.tolist()
        assert base_votes(base, given).argmax(1).tolist() == plain.tolist()
    assert base.training
    for rows in (1, 4, 9):
        assert base_votes(smoothed, images, rows).equal(votes)


def test_base_votes_of_logits_that_are_not_finite(images: Tensor) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = images.mean((2, 3))
            return logits.masked_fill(images[:, :1, 0, 0] == 1, torch.nan)

    images[4, 0, 0, 0] = 255
    images[:4, 0, 0, 0] = images[5:, 0, 0, 0] = 7
    with pytest.warns(UserWarning, match="logits of 1 of 9 images are not finite"):
        assert base_votes(Broken(), images).sum(1).tolist() == [1] * 4 + [0] + [1] * 4


def test_base_votes_of_nothing(base: nn.Module) -> None:
    assert base_votes(base, torch.zeros(0, 3, 6, 6)).shape == (0, 4)


def test_base_votes_complain(base: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match="float images must lie in 0"):
        base_votes(base, images.float())


# ---- distances and votes ---------------------------------------------------------------------------------------------


def test_distances(images: Tensor) -> None:
    pixels = images.float() / 255
    moved = (pixels + torch.linspace(-0.2, 0.2, 9).view(9, 1, 1, 1)).clamp(0, 1)
    moved[0, 1, 2, 3] = 1 - pixels[0, 1, 2, 3]
    difference = (moved.double() - pixels.double()).flatten(1).numpy()
    for given in (images, pixels):
        assert distances(given, moved, "linf").tolist() == np.abs(difference).max(1).tolist()
        assert distances(given, moved, "l2").numpy() == pytest.approx(np.sqrt((difference**2).sum(1)), rel=1e-12)
        assert distances(given, given, "l2").tolist() == [0] * 9
    with pytest.raises(ValueError, match="norm is 'l1'; it must be one of linf, l2"):
        distances(images, moved, "l1")


def test_votes_are_of_samples_that_no_attack_sees(images: Tensor) -> None:
    """Two classes by one noisy value: the votes of 40 samples of an attack and of the classifier agree only by luck."""

    class Sign(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            value = images[:, 0, 0, :1]
            return torch.cat([value, 1 - value], 1)

    pixels = torch.full((5, 3, 6, 6), 0.5)
    zeros = torch.zeros(5, dtype=torch.int64)
    function = BaseFunction.resolved(Sign(), gaussian_law(0.25), (3, 6, 6), precision="fp32", seed=7)
    seen = Gradients(function).outcomes(pixels, zeros, torch.arange(5), 0, 40).votes
    fresh = SmoothedClassifier(Sign().eval(), 0.25, 2, seed=7, precision="fp32").votes(pixels, 40)
    assert seen.sum(1).tolist() == fresh.sum(1).tolist() == [40] * 5
    assert (seen != fresh).any(1).sum() >= 3
