"""The effort of a self test: how much of everything its checks draw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Numbers of what the checks draw, and the seed.

    Attributes:
        seed: of all noise, votes and points that are drawn.
        elements: elements of noise held against the definition, in each case and backend.
        draws: elements of a law whose cells, moments and tails are counted.
        pairs: elements of two draws that are correlated.
        alpha: level of the procedures whose errors are counted.
        runs: runs of a procedure.
        mistakes: whether procedures at twice their level are counted too, which must be found out.
        points: points of the functions that are rounded to the safe side.
        runners: runners that the networks of the row test run by.
    """

    seed: int = 0
    elements: int = 100
    draws: int = 2**24
    pairs: int = 2**18
    alpha: float = 0.01
    runs: int = 50_000
    mistakes: bool = False
    points: int = 300
    runners: tuple[str, ...] = ("eager", "openvino")


QUICK = Effort()
FULL = Effort(
    elements=1_000, draws=2**29, pairs=2**24, alpha=0.001, runs=1_000_000, mistakes=True, points=3_000,
    runners=("eager", "openvino", "compiled"),
)  # fmt: skip
