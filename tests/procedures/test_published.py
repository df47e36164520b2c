"""What early stopping would have saved on published networks, from the radii in the logs of Cohen et al. (2019).

Their radii tell the shares of votes: n = 100,000, sigma 0.25, alpha 0.01, Cohen's bound. Votes are drawn by these
shares, for the procedures of this package at alpha 0.001. Of an image that abstains only a bound is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from smoothfast.procedures import (
    ABSTAIN,
    Decision,
    Draw,
    FixedCertify,
    GridCertify,
    Procedure,
    SequentialCertify,
    ToleranceCertify,
)
from smoothfast.runs.logs import read_log
from smoothfast.statistics import certified_radius, share_bounds

N, ALPHA, SIGMA, PUBLISHED_ALPHA = 100_000, 0.001, 0.25, 0.01
RADII = (0.0, 0.25, 0.5, 0.75)
Floats = NDArray[np.float64]
PROCEDURES: dict[str, Callable[[], Procedure]] = {
    "fixed": partial(FixedCertify, 100, N, ALPHA, SIGMA, "cohen", label=0),
    "sequential, 0.25": partial(SequentialCertify, 100, N, ALPHA, SIGMA, "cohen", 0.25, label=0),
    "sequential, 0.5": partial(SequentialCertify, 100, N, ALPHA, SIGMA, "cohen", 0.5, label=0),
    "tolerance 0.05": partial(ToleranceCertify, 100, N, ALPHA, SIGMA, "cohen", 0.05, label=0),
    "grid": partial(GridCertify, 100, N, ALPHA, SIGMA, "cohen", RADII, label=0),
}
# Shares of votes of ResNet-110 on CIFAR-10 at twenty quantiles of the images, one half where it abstains.
QUANTILES = (
    0.5, 0.5, 0.57413, 0.63738, 0.69697, 0.7543, 0.82143, 0.86986, 0.91167, 0.95091, 0.97026, 0.98589, 0.99363, 0.99691,
    0.9988, 0.99963, 0.99996, 1.0, 1.0, 1.0,
)  # fmt: skip


def shares_of(radius: Floats, abstaining: float) -> Floats:
    """The least shares of votes that give radii of three decimals; `abstaining` where there is none."""
    votes = np.arange(N // 2, N + 1)
    radii = certified_radius(*share_bounds(votes, 0, N, PUBLISHED_ALPHA, "cohen"), SIGMA)
    found = votes[np.minimum(np.searchsorted(radii, radius - 0.0005), len(votes) - 1)] / N
    return np.where(radius > 0, found, abstaining)


def decided(make: Callable[[], Procedure], share: float, rng: np.random.Generator) -> Decision:
    """The decision on votes of which the class has a share, and one rival the rest."""
    procedure = make()
    answer: Draw | Decision = procedure.begin()
    while isinstance(answer, Draw):
        own = rng.binomial(answer.count, share)
        answer = procedure.update(np.array([own, answer.count - own, 0]))
    return answer


def simulated(name: str, shares: Iterable[float], seed: int) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """Radii, whether the class is certified, and samples, of images with these shares."""
    rng = np.random.default_rng(seed)
    found = [decided(PROCEDURES[name], share, rng) for share in shares]
    radii, labels, samples = (
        np.array([getattr(each, field) for each in found]) for field in ("radius", "label", "samples")
    )
    return radii, labels != ABSTAIN, samples


def test_shares_are_those_that_give_the_radii() -> None:
    votes = np.array([55_000, 80_000, 99_000, N])
    radii = certified_radius(*share_bounds(votes, 0, N, PUBLISHED_ALPHA, "cohen"), SIGMA)
    np.testing.assert_allclose(shares_of(radii.round(3), 0.5), votes / N, atol=0.002)
    assert shares_of(np.zeros(1), 0.4) == [0.4]


def test_early_stopping_certifies_what_fixed_n_does_at_a_part_of_its_samples() -> None:
    shares = np.array(QUANTILES)
    true = SIGMA * norm.ppf(shares)
    fixed, certified, _ = simulated("fixed", shares, 1)
    clear = np.min(np.abs(true[:, None] - np.array(RADII)), 1) > 0.02
    for name, radii in {"grid": RADII, "sequential, 0.25": RADII[1:2], "sequential, 0.5": RADII[2:3]}.items():
        found, held, samples = simulated(name, shares, 2)
        assert (found <= true + 1e-12).all()
        largest = np.array([max((r for r in radii if radius >= r), default=0) for radius in fixed])
        np.testing.assert_array_equal(found[clear], largest[clear])
        if name == "grid":
            np.testing.assert_array_equal(held[clear], certified[clear])
        assert samples.mean() < N / 4
        assert np.median(samples) < N / 15


@pytest.mark.slow
@pytest.mark.parametrize("network", ["cifar10/resnet110", "imagenet/resnet50"])
@pytest.mark.parametrize("abstaining", [0.5, 0.46])
def test_of_the_published_logs(published_logs: Path, network: str, abstaining: float) -> None:
    """What docs/records.md has of it is printed."""
    log = read_log(published_logs / f"certify/{network}/noise_0.25/test/sigma_0.25")
    rows: dict[str, tuple[list[float], Any]] = {}
    for name in PROCEDURES:
        radii, held, samples = simulated(name, shares_of(log.radius, abstaining), 0)
        accuracy = [float((log.correct & held & (radii >= radius)).mean()) for radius in RADII]
        rows[name] = accuracy, samples
        told = " | ".join(f"{share:.3f}" for share in accuracy)
        print(
            f"\n| {name} | {told} | {samples.mean():,.0f} | {np.median(samples):,.0f} | {(samples >= N).mean():.3f} |"
        )
    fixed, grid = rows["fixed"], rows["grid"]
    assert np.abs(np.subtract(grid[0], fixed[0]))[:3].max() <= 0.004
    assert 0 <= fixed[0][3] - grid[0][3] <= 0.024
    assert abs(rows["sequential, 0.25"][0][1] - fixed[0][1]) <= 0.004
    assert abs(rows["sequential, 0.5"][0][2] - fixed[0][2]) <= 0.004
    assert (5 if abstaining == 0.5 else 7) * grid[1].mean() < N
    assert 17 * np.median(grid[1]) < N
