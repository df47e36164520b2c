"""SciPy's special functions, imported when one is first called.

That takes 0.3 s of CPU time, which neither `import smoothfast` nor an error about the options of a command has to wait
for.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from numpy.typing import ArrayLike


def betainc(a: ArrayLike, b: ArrayLike, x: ArrayLike) -> Any:
    """The regularized incomplete beta function."""
    return _scipy().betainc(a, b, x)


def betaincc(a: ArrayLike, b: ArrayLike, x: ArrayLike) -> Any:
    """The complement of `betainc`, 1 - betainc(a, b, x)."""
    return _scipy().betaincc(a, b, x)


def betaincinv(a: ArrayLike, b: ArrayLike, y: ArrayLike) -> Any:
    """The inverse of `betainc` in x."""
    return _scipy().betaincinv(a, b, y)


def betaln(a: ArrayLike, b: ArrayLike) -> Any:
    """The logarithm of the absolute value of the beta function."""
    return _scipy().betaln(a, b)


def ndtr(x: ArrayLike) -> Any:
    """The distribution function of the standard normal law."""
    return _scipy().ndtr(x)


def ndtri(y: ArrayLike) -> Any:
    """The quantile function of the standard normal law."""
    return _scipy().ndtri(y)


@cache
def _scipy() -> Any:
    return import_module("scipy.special")
