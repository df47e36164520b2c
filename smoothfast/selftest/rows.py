"""The row test: networks whose rows depend on other rows, or that change, are found out, and honest ones are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.votes import EXACT, NO, ROUNDED
from ..runners import DeclinedError
from ..smoothing import SmoothedClassifier
from .effort import Effort
from .records import Check, Finding, judged, skipped

SUBJECT = "Rows"
CLASSES, SHAPE, BATCH = 5, (3, 4, 4), 32


class Pixels(nn.Module):
    """Logits that are the first pixels, after a change of the images."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 5] of images."""
        return self.change(x).flatten(1)[:, :CLASSES]


class Changing(nn.Module):
    """Logits of a network that writes into a buffer of its own in every pass."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 5] of images."""
        self.passes += 1
        return x.flatten(1)[:, :CLASSES]


def by_range(x: Tensor) -> Tensor:
    """Rounds to 4 bits, on a scale that the largest element of the batch sets."""
    scale = x.abs().amax() / 7
    return (x / scale).round() * scale


def looking_aside(x: Tensor) -> Tensor:
    """Images of one brightness with the mean of their like added, which no image of noise is."""
    flat = x.flatten(1)
    near = ((flat.mean(1) - 0.3).abs() < 0.1)[:, None]
    return flat + near * (flat * near).mean(0)


def in_places(x: Tensor) -> Tensor:
    """Images times a number that depends on their place, in the last bits."""
    return x.flatten(1) * (1 + 1e-6 * torch.arange(len(x), device=x.device)[:, None])


class Case(NamedTuple):
    """A network and what has to be found."""

    name: str
    make: Callable[[], nn.Module]
    wanted: str
    sound: bool = False
    batch: int = BATCH


def _changed(name: str, change: Callable[[Tensor], Tensor], wanted: str = NO) -> Case:
    return Case(name, partial(Pixels, change), wanted)


HONEST = Case("honest: the first pixels", partial(Pixels, torch.clone), EXACT, sound=True)
PLAIN = (
    HONEST,
    _changed("4 bits by the largest of the batch", by_range),
    _changed("mean taken away", lambda x: x - x.mean(0)),
)
EAGER = (
    _changed("over the largest", lambda x: x / x.amax()),
    _changed("4 bits of what was clamped", lambda x: by_range(x.clamp(-1, 1))),
    _changed("above the smallest", lambda x: x - x.amin()),
    _changed("by the brightest image", lambda x: x / x.flatten(1).mean(1).amax().clamp(min=1e-3)),
    _changed("darkest image taken away", lambda x: x - x[x.flatten(1).mean(1).argmin()]),
    _changed("by the smallest channel", lambda x: x / x.mean((0, 2, 3)).amin().clamp(min=0.01)),
    _changed("statistics of the batch", lambda x: F.batch_norm(x, None, None, training=True)),
    _changed("dropout that stays on", lambda x: F.dropout(x, 0.2, training=True)),
    _changed("only images of one brightness", looking_aside),
    _changed("last bits by the place", in_places, ROUNDED),
    _changed("last bits by the company", lambda x: x + 1e-6 * x.mean(), ROUNDED),
    Case("last bits by the place, one row a batch", partial(Pixels, in_places), EXACT, sound=True, batch=1),
    Case("a network that changes", Changing, EXACT),
)  # fmt: skip


def checks(effort: Effort) -> Iterator[Check]:
    """Makes the checks of this subject."""
    for runner in effort.runners:
        cases = (*PLAIN, *EAGER) if runner == "eager" else PLAIN
        for case in cases:
            absent = runner == "openvino" and find_spec("openvino") is None
            act = partial(skipped, "openvino is not installed") if absent else partial(found_out, effort, case, runner)
            yield Check(SUBJECT, f"{case.name}, {runner}", act)


def found_out(effort: Effort, case: Case, runner: str) -> Finding:
    """Certifies images by a network, and says what its certificates say about it."""
    grey = torch.full((4, *SHAPE), round(0.3 * 255), dtype=torch.uint8)
    wanted = f"{case.wanted}, {'sound' if case.sound else 'not sound'}"
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(effort.seed % 2**63)
        smoothed = SmoothedClassifier(
            case.make().eval(), sigma=0.05, num_classes=CLASSES, precision="fp32", max_batch=case.batch, runner=runner,
            seed=effort.seed,
        )  # fmt: skip
        try:
            certificate = smoothed.certify(grey, n0=5, n=40)
        except DeclinedError as error:
            return skipped(f"runner {runner} declined: {error}")
    found = f"{certificate.meta['row_function']}, {'sound' if certificate.sound else 'not sound'}"
    return judged(found == wanted, found, wanted)
