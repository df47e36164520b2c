"""Certificates computed anew: the same bits, or what differs and what may be why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..images import UNIT
from .classifier import SmoothedClassifier
from .results import Certificate

ASKED = (
    "n0", "n", "alpha", "method", "bound", "image_ids", "radius", "tolerance", "radii", "beta", "labels", "randomize",
)  # fmt: skip
CHOSEN = "sigma", "normalize", "seed", "precision", "runner", "clip"
NEEDED = (*ASKED, *CHOSEN, "law", "micro_batch")
OF_THE_FUNCTION = (
    "weights_sha256", "runner", "precision", "micro_batch", "device", "arithmetic", "graph", "normalize",
)  # fmt: skip
OF_THE_ENVIRONMENT = "smoothfast", "torch", "openvino", "triton", "processor", "platform"


@dataclass(frozen=True, eq=False)
class Replay:
    """A certificate computed anew, beside the one that was given.

    Attributes:
        certificate: the new one.
        differing: positions of the images whose results are not the same to the last bit.
        reasons: what was otherwise and may be why, as "torch was 2.14.1, is 2.15.0". Where there are none, nothing may
            differ.
    """

    certificate: Certificate
    differing: list[int]
    reasons: list[str]

    @property
    def same(self) -> bool:
        """Whether every result is the same."""
        return not self.differing


def replay(certificate: Certificate, base: nn.Module, images: Tensor) -> Replay:
    """Computes a certificate anew from its `meta`, and compares labels, radii, bounds, counts, samples and decisions.

    Args:
        certificate: of `SmoothedClassifier.certify`.
        base: the base classifier that it is of; `reasons` tells if the weights are others.
        images: as they were given.

    Raises:
        ValueError: `meta` lacks something, or does not fit the images.
    """
    meta = certificate.meta
    missing = [name for name in NEEDED if name not in meta]
    if missing:
        raise ValueError(f"certificate.meta lacks {', '.join(missing)}; it must be that of SmoothedClassifier.certify")
    if len(images) != len(certificate.labels):
        raise ValueError(f"images are {len(images)}; they must be the {len(certificate.labels)} of the certificate")
    chosen = {name: meta[name] for name in CHOSEN}
    if meta["precision"] == "int8":  # whose bits are the same by any runner that takes it
        chosen["runner"] = "auto"
    smoothed = SmoothedClassifier(
        base, num_classes=certificate.counts.shape[1], noise=meta["law"], max_batch=meta["micro_batch"],
        bounds=meta.get("bounds", UNIT),
        **chosen,
    )  # fmt: skip
    again = smoothed.certify(images, **{name: meta[name] for name in ASKED})
    differing = sorted(
        {i for name in vars(again) for i in _differing(getattr(certificate, name), getattr(again, name))}
    )
    environments = (each.meta.get("environment", {}) for each in (certificate, again))
    return Replay(again, differing, reasons((meta, again.meta), tuple(environments)))


def reasons(functions: tuple[Mapping[str, Any], ...], environments: tuple[Mapping[str, Any], ...]) -> list[str]:
    """The reasons for which results may differ: what is said of a function, and of its environment, before and now."""
    found = []
    for names, (before, now) in ((OF_THE_FUNCTION, functions), (OF_THE_ENVIRONMENT, environments)):
        pairs = ((name, *(json.dumps(side.get(name)) for side in (before, now))) for name in names)
        found += [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]
    for when, function, environment in zip(("were", "are"), functions, environments, strict=True):
        agreement = {**environment, **function}.get("row_function")
        if agreement in ("no", "up to rounding"):
            found.append(f'logits {when} a function of their row "{agreement}", and rows meet others on other cores')
    return found


def _differing(before: Any, now: Any) -> list[int]:
    """The positions at which the results of images differ."""
    if isinstance(before, Tensor):
        unequal = (before != now).reshape(len(before), -1).any(1)
        return torch.nonzero(unequal).flatten().tolist()
    if not isinstance(before, list):
        return []  # what certificates say of all images alike
    return [i for i, (old, new) in enumerate(zip(before, now, strict=True)) if old != new]
