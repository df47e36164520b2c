"""Checks of values that users give: in their range, one of a few names, a number as 8/255, an object as
`package.module:name` or `file.py:name`. Each raises ValueError that names the argument, its value and what would be
right."""

from __future__ import annotations

import math
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module, util
from operator import index
from pathlib import Path
from typing import Any

LEAST_SIGMA = 1e-6  # of noise, in pixel units; about 1e-38 numbers of float32 are subnormal, and kernels differ
LARGEST_SIGMA = 4.0  # likewise; nine of ten noisy pixels are then out of their range
# Where the code is that is not the user's: this package, Python, packages.
NOT_OWN = (f"{Path(__file__).parent}{os.sep}", f"{sysconfig.get_path('stdlib')}{os.sep}", "<")


def choice(argument: str, value: str, accepted: Iterable[str]) -> None:
    """Raises ValueError unless the value is one of those accepted."""
    if value not in accepted:
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(accepted)}")


def at_least(least: int, **values: int | None) -> None:
    """Raises ValueError unless every value is an integer of at least so much, or None; by name."""
    for name, value in values.items():
        if value is not None and index(value) < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")


def at_most(most: float, **values: float | None) -> None:
    """Raises ValueError unless every value is at most so much, or None; by name."""
    for name, value in values.items():
        if value is not None and value > most:
            raise ValueError(f"{name} is {value}; it must be at most {most:,}")


def positive(**values: float | None) -> None:
    """Raises ValueError unless every value is positive and finite, or None; by name."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite")


def noise_level(**values: float | None) -> None:
    """Raises ValueError unless every value is a standard deviation that noise can have, or None; by name."""
    for name, value in values.items():
        if value is not None and not LEAST_SIGMA <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be finite and at least {LEAST_SIGMA}, in [0, 1] pixel units")


def in_pixel_units(argument: str, value: float, most: float) -> None:
    """Raises ValueError where a value is too large for images in [0, 1], as one in units of 8 bits is."""
    if value > most:
        raise ValueError(
            f"{argument} is {value:g}; it is at most {most:g} in [0, 1] pixel units: did you mean {value:g}/255?"
        )


def not_negative(**values: float | None) -> None:
    """Raises ValueError unless every value is at least 0 and finite, or None; by name."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be at least 0 and finite")


def seed_in_range(seed: int) -> None:
    """Raises ValueError unless a seed has 64 bits."""
    if not 0 <= index(seed) < 2**64:
        raise ValueError(f"seed is {seed}; it must lie in 0 .. 2**64 - 1")


def fraction(argument: str, value: str) -> float:
    """The number that a text like 0.5, 1e-3 or 8/255 stands for."""
    above, slash, below = value.partition("/")
    try:  # not by Fraction, which takes 1e999999999 for an integer and makes it
        number = int(above) / int(below) if slash else float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{argument} is {value!r:.50}; it must be a number as 0.03 or 8/255")
    return number


def near(name: str, known: Iterable[str]) -> str:
    """The known names that a misspelt one may stand for, for the end of a message."""
    found = get_close_matches(name, list(known), 3, 0.6)
    return f"; near: {', '.join(found)}" if found else ""


def imported(spec: str, argument: str, accepted: str) -> Any:
    """The object that `package.module:name` or `file.py:name` names. A module of the working folder is found, as by
    `python -m`, but only where the spec names it."""
    module, colon, name = spec.rpartition(":")
    if not colon:
        raise ValueError(f"{argument} is {spec!r}; it must be {accepted}")
    try:
        found = _of_file(Path(module)) if module.endswith(".py") else _of_module(module)
    except Exception as error:  # the module is the user's, and may raise anything
        raise ValueError(
            f"{argument} is {spec!r}, which cannot be imported ({told(error)}); accepted: {accepted}"
        ) from error
    if not name or not hasattr(found, name):
        raise ValueError(
            f"{argument} is {spec!r}, which cannot be imported: {module} has no {name!r}{near(name, vars(found))}"
        )
    return getattr(found, name)


def _of_module(module: str) -> Any:
    folder, top = Path.cwd(), module.partition(".")[0]
    here = (folder / f"{top}.py").is_file() or (folder / top).is_dir()
    if top and here and not {"", str(folder)} & set(sys.path):
        sys.path.insert(0, str(folder))
    return import_module(module)


def _of_file(path: Path) -> Any:
    """The module that a file is, imported once; it finds those beside it."""
    path = path.resolve(strict=True)
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    name = path.stem if known is None else f"{path.stem}_of_file"  # a name that is taken stays whose it is
    made = util.spec_from_file_location(name, path)
    assert made is not None
    assert made.loader is not None
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = sys.modules[name] = util.module_from_spec(made)
    try:
        made.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def told(error: Exception) -> str:
    """An error that code of the user's raised, in a line: what it says, and where that code was last."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(NOT_OWN) and "site-packages" not in frame.filename
    ]
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not own:
        return said
    file = own[-1].filename
    inside = file.startswith(f"{Path.cwd()}{os.sep}")
    return f"{said} ({os.path.relpath(file) if inside else file}:{own[-1].lineno}, in {own[-1].name})"
