"""Hints, each once in a process: of what is no mistake, and could be sounder or faster."""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor

from ..engine import Engine
from ..images import UNIT, Bounds, of_8_bits
from ..modules import hint
from ..runners.choice import far_faster


def of_floats(engine: Engine, images: Tensor, noise: str | None, bounds: Bounds | None) -> None:
    """Says so where certificates of float images are not sound, and those of the same images as uint8 would be: of
    pixels, by the noise that uint8 gets by itself."""
    pixels = bounds == UNIT and noise is None and of_8_bits(images)
    if pixels and engine.meta["row_function"] == "bit for bit":
        hint(
            "8 bits",
            "images are float and hold no more than 8 bits: their certificates are not sound, and those of the same "
            "images as uint8 would be, (255 * images).round().to(torch.uint8) (docs/soundness.md)",
        )


def of_a_runner(engine: Engine, count: int, samples: int, declined: Container[str]) -> None:
    """Says so where another runner than the one that was chosen for one image would be far faster for all of a call.

    It is not taken: the result of an image would depend on how many are beside it.

    Args:
        count: images of the call.
        samples: of each, in the mean.
        declined: runners that do not take the network.
    """
    function = engine.function
    faster = far_faster(
        function.runner, function.adapted.workload, count * samples, function.precision, function.device
    )
    if faster is not None and faster not in declined:
        hint(
            "runner",
            f"runner {function.runner!r} was chosen by the work of one image, so that none depends on those beside it; "
            f"make the classifier with runner={faster!r}, and {count:,} images of {samples:,} samples take half the "
            "time or less",
        )
