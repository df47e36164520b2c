"""Texts that name a model or a data set: what is accepted, checked without loading anything, torch least of all."""

from __future__ import annotations

from pathlib import Path

from .checks import choice
from .names import DATA, MODELS, WEIGHT_NOISES

MODEL_SPECS = (
    f"one of {', '.join(MODELS)}, torchvision:NAME, timm:NAME or package.module:callable; with +pni or +cni, noise in "
    "its weights"
)
DATA_SPECS = (
    f"{DATA[0]}, {', '.join(f'{name}:ROOT' for name in DATA[1:-1])}, {DATA[-1]}:PATH or package.module:callable"
)


def require_model(spec: str) -> None:
    """Raises ValueError unless a text has the form of a model; whether the model can be built is seen later."""
    plain, plus, noise = spec.rpartition("+")
    if plus:
        choice("the noise in the weights of model", noise, WEIGHT_NOISES)
        return require_model(plain)
    kind, colon, _ = spec.partition(":")
    if spec not in MODELS and not (kind and colon):
        raise ValueError(f"model is {spec!r}; it must be {MODEL_SPECS}")


def draws_no_noise(spec: str) -> bool:
    """Tells whether a model is known to have no noise of its own; of a user's own model that is seen later."""
    kind, colon, _ = spec.partition(":")
    return "+" not in spec and (not colon or kind in ("torchvision", "timm"))


def names_code(spec: str) -> bool:
    """Tells whether a model or data set is a callable that would be imported."""
    kind, colon, _ = spec.rpartition("+")[0 if "+" in spec else 2].partition(":")
    return bool(colon) and kind not in ("torchvision", "timm", *DATA[1:])


def comes_without_weights(spec: str) -> bool:
    """Tells whether a model is built untrained, so that it needs a weights file. A user's own may bring its weights."""
    kind, colon, _ = spec.partition(":")
    return not colon or kind in ("torchvision", "timm")


def require_data(spec: str, argument: str = "data") -> None:
    """Raises ValueError unless a text has the form of a data set, in a folder that is there."""
    kind, _, rest = spec.partition(":")
    if spec == DATA[0]:
        return
    if not (kind and rest):
        raise ValueError(f"{argument} is {spec!r}; it must be {DATA_SPECS}")
    if kind in DATA[1:] and not Path(rest).exists():
        raise ValueError(f"{argument} is {spec!r}, which cannot be read: there is no {rest}")
