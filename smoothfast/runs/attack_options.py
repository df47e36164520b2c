"""The options of attacks on data sets, by name of the attack. Known without torch, as usage errors are told at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checks import at_least, choice, not_negative
from ..files import require_new, require_no_folder
from ..names import ATTACKS, LOSSES, NORMS, TARGETS

_CLIMB: Mapping[str, Any] = {"eps": 8 / 255, "alpha": None, "steps": 7, "samples": 8, "norm": "linf", "restarts": 1}
_AWAY: Mapping[str, Any] = {"targeted": "none"}
OPTIONS: dict[str, Mapping[str, Any]] = {
    "fgsm": {**_AWAY, "eps": 8 / 255, "norm": "linf", "loss": "ce"},
    "pgd": {**_CLIMB, **_AWAY, "samples": 1, "loss": "ce"},
    "epgd": {**_CLIMB, **_AWAY, "loss": "ce"},
    "smoothadv": {**_CLIMB, **_AWAY},
    "multi-targeted": {**_CLIMB, "samples": 1},
    "ddn": {**_AWAY, "steps": 100, "samples": 1},
    "cw": {**_AWAY, "steps": 1000, "samples": 1},
    "nattack": {**_AWAY, "eps": 8 / 255, "steps": 500, "samples": 1},
    "square": {**_AWAY, "eps": 8 / 255, "steps": 5000, "samples": 1},
    "pgd-legacy": {**_CLIMB, **_AWAY, "samples": 1, "loss": "ce"},
}
"""The options that each attack takes, by its name, with their values where they are not given."""


def options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the options of an attack; those given that are None are as the attack has them.

    Raises:
        ValueError: there is no such attack, it does not take one of those given, or a value is out of its range.
    """
    choice("attack", name, ATTACKS)
    taken = OPTIONS[name]
    chosen = {option: value for option, value in given.items() if value is not None}
    for option, value in chosen.items():
        if option not in taken:
            others = ", ".join(other for other, theirs in OPTIONS.items() if option in theirs)
            raise ValueError(f"{option} is {value!r}; attack {name!r} takes none, as {others} do")
    complete = {**taken, **chosen}
    for option, accepted in {"norm": NORMS, "loss": LOSSES, "targeted": TARGETS}.items():
        if option in complete:
            choice(option, complete[option], accepted)
    at_least(1, **{option: complete.get(option) for option in ("steps", "samples", "restarts")})
    not_negative(**{option: complete.get(option) for option in ("eps", "alpha")})
    return complete


def parts_of(out: Path) -> Path:
    """The folder where each batch of a run is kept until all are done, as a file of its own."""
    return out.with_suffix(".parts")


def check_out(path: Path, resume: bool) -> None:
    """Checks the file of a run before there is any work: neither it nor a part is there yet, or they are gone on with.

    Raises:
        ValueError: its name has another ending.
        FileExistsError: one is there, and not to be gone on with.
    """
    require_no_folder(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"out is {str(path)!r}; it must end in .safetensors")
    if not resume:
        require_new(path)
        require_new(parts_of(path))
