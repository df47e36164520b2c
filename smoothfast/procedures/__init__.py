"""Procedures: how many votes to draw for one image, and what they decide.

A procedure is handed the votes of one draw after another and answers with the next draw or with its decision. It knows
no devices, batches or models, so an engine can drive one procedure per image and pack the draws of many images into
full batches. Votes are looked at when a number of samples is reached that was fixed beforehand, and at no other time.

Sources: PREDICT and CERTIFY of Cohen et al. 2019, arXiv 1902.02918; `statistics` for the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..checks import choice
from ..names import CERTIFY_METHODS, PREDICT_METHODS
from .certify import FUTILITY, PILOT, FixedCertify, GridCertify, SequentialCertify, ToleranceCertify
from .predict import FixedPredict, SequentialPredict
from .votes import (
    ABSTAIN,
    CERTIFIED,
    NOT_CERTIFIED,
    PREDICTED,
    UNDECIDED,
    Count,
    Decision,
    Draw,
    Procedure,
    Total,
    Votes,
)

__all__ = [
    "ABSTAIN",
    "CERTIFIED",
    "CERTIFY_METHODS",
    "FUTILITY",
    "NOT_CERTIFIED",
    "PILOT",
    "PREDICTED",
    "PREDICT_METHODS",
    "UNDECIDED",
    "Count",
    "Decision",
    "Draw",
    "FixedCertify",
    "FixedPredict",
    "GridCertify",
    "Procedure",
    "SequentialCertify",
    "SequentialPredict",
    "ToleranceCertify",
    "Total",
    "Votes",
    "certify_procedure",
    "expected",
    "predict_procedure",
]


def expected(method: str, most: int) -> int:
    """Guesses the samples that an image takes in the mean: stopping early saves most of them."""
    return most if method == "fixed" else max(most // 20, 200)


def predict_procedure(method: str, n: int, alpha: float) -> Procedure:
    """The procedure of PREDICT of a method, "fixed" or "sequential".

    Raises:
        ValueError: an argument is out of its range.
    """
    choice("method", method, PREDICT_METHODS)
    return (FixedPredict if method == "fixed" else SequentialPredict)(n, alpha)


def certify_procedure(
    method: str,
    n0: int,
    n: int,
    alpha: float,
    sigma: float,
    bound: str,
    *,
    radius: float | None = None,
    tolerance: float | None = None,
    radii: Sequence[float] | None = None,
    beta: float | None = None,
    label: int | None = None,
    u: float = 1.0,
    deviation: float = 0.0,
) -> Procedure:
    """The procedure of CERTIFY of a method: "fixed", "sequential" (takes `radius`), "tolerance" (takes `tolerance`) or
    "grid" (takes `radii`, and may take `beta`).

    Raises:
        ValueError: an argument is out of its range, is missing, or is of another method.
    """
    choice("method", method, CERTIFY_METHODS)
    if isinstance(radii, (int, float, str)):
        raise ValueError(f"radii is {radii!r}; it must be several numbers, as (0, 0.25, 0.5)")
    for name, value, needing in (
        ("radius", radius, "sequential"), ("tolerance", tolerance, "tolerance"), ("radii", radii, "grid"),
    ):  # fmt: skip
        if (value is None) == (method == needing):
            wanted = "needs one" if method == needing else f"takes none; {needing!r} does"
            raise ValueError(f"{name} is {value}; method {method!r} {wanted}")
    if beta is not None and method != "grid":
        raise ValueError(f"beta is {beta}; method {method!r} takes none; 'grid' does")
    if u != 1 and method in ("sequential", "grid"):
        raise ValueError(f"randomize is True; method {method!r} has no randomized bounds, the others have")
    if radii is not None:
        level = FUTILITY if beta is None else beta
        return GridCertify(n0, n, alpha, sigma, bound, radii, beta=level, label=label, deviation=deviation)
    if radius is not None:
        return SequentialCertify(n0, n, alpha, sigma, bound, radius, label=label, deviation=deviation)
    if tolerance is not None:
        return ToleranceCertify(n0, n, alpha, sigma, bound, tolerance, label=label, u=u, deviation=deviation)
    return FixedCertify(n0, n, alpha, sigma, bound, label=label, u=u, deviation=deviation)
