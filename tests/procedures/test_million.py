"""A million certificates and predictions by each procedure, from images to radii, and the errors among them counted.

The base classifier cuts one noisy pixel into classes, so the probability of each is known from the table of the noise.
The law is one where errors are likeliest: radii at their boundary. docs/trust.md says what was run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor, nn

import smoothfast as sf
from smoothfast.ops.laws import lattice_thresholds

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
ALPHA, SIGMA, LEVEL = 0.001, 0.25, 128
IMAGES, CHUNK = 1_000_000, 20_000


class Cuts(nn.Module):
    """The class of a pixel: how many of some levels are at most its own."""

    levels: Tensor

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, x: Tensor) -> Tensor:
        pixel = (255 * x.flatten(1)).round()
        return nn.functional.one_hot((pixel >= self.levels).sum(1), len(self.levels) + 1).float()


def probabilities(levels: list[int]) -> list[float]:
    """The probabilities of the classes of the image at LEVEL."""
    thresholds = lattice_thresholds(SIGMA)
    below = [thresholds[level - LEVEL - 1 + len(thresholds) // 2] / 2**96 for level in levels]
    return [high - low for low, high in zip([0.0, *below], [*below, 1.0], strict=True)]


def smoothed(levels: list[int]) -> sf.SmoothedClassifier:
    base = Cuts(levels).eval()
    return sf.SmoothedClassifier(base, SIGMA, len(levels) + 1, precision="fp32", runner="eager", max_batch=2048)


def counted(levels: list[int], command: str, most: int, options: dict[str, Any]) -> tuple[int, int]:
    """The errors among IMAGES results of a method, and the results that answer."""
    model, law, bound = smoothed(levels), probabilities(levels), options.get("bound")
    images = torch.full((CHUNK, 1, 1, 1), LEVEL, dtype=torch.uint8)
    true = torch.tensor([radius(law, label, bound) for label in range(len(law))], dtype=torch.float64)
    best, wrong, answers = law.index(max(law)), 0, 0
    for first in range(0, IMAGES, CHUNK):
        ids = torch.arange(first, first + CHUNK)
        found: Any = getattr(model, command)(images, n=most, alpha=ALPHA, image_ids=ids, **options)
        answered = found.labels >= 0
        labels = found.labels[answered]
        answers += len(labels)
        bad = labels != best if command == "predict" else found.radii[answered] > true[labels]
        wrong += int(bad.sum())
    return wrong, answers


def radius(law: list[float], label: int, bound: str | None) -> float:
    """The true radius of a class, by a bound."""
    rival = 1 - law[label] if bound == "cohen" else max(p for k, p in enumerate(law) if k != label)
    return max(SIGMA / 2 * float(norm.ppf(law[label]) - norm.ppf(rival)), 0.0)


TWO, THREE = [LEVEL + 19], [LEVEL - 58, LEVEL + 40]
CASES: list[tuple[str, list[int], str, int, dict[str, Any]]] = [
    ("fixed, Cohen's bound", TWO, "certify", 100, {"bound": "cohen"}),
    ("fixed, multi-class bound", THREE, "certify", 100, {"bound": "multiclass"}),
    ("fixed, randomised", TWO, "certify", 100, {"bound": "cohen", "randomize": True}),
    ("sequential, Cohen's bound", TWO, "certify", 200, {"bound": "cohen", "method": "sequential"}),
    ("sequential, multi-class bound", THREE, "certify", 200, {"bound": "multiclass", "method": "sequential"}),
    ("tolerance", THREE, "certify", 1100, {"bound": "multiclass", "method": "tolerance", "tolerance": 0.3}),
    ("predict, fixed", [LEVEL + 1], "predict", 100, {}),
    ("predict, sequential", [LEVEL + 1], "predict", 200, {"method": "sequential"}),
]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("levels", "command", "most", "options"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_errors_of_a_million(levels: list[int], command: str, most: int, options: dict[str, Any]) -> None:
    if options.get("method") == "sequential" and command == "certify":  # asked for a hair more than there is
        law = probabilities(levels)
        options = options | {"radius": max(radius(law, k, options["bound"]) for k in range(len(law))) * (1 + 1e-9)}
    if command == "certify":
        options = options | {"n0": 20}
    wrong, answers = counted(levels, command, most, options)
    print(f"\n{wrong:,} errors in {IMAGES:,}, {answers:,} answers")
    assert answers > 0
    assert wrong <= int(binom.isf(1e-6, IMAGES, ALPHA))
