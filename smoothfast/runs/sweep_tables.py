"""Means and tables of sweeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from .sweep_log import SettingAccuracy
from .tables import markdown


class Spread(NamedTuple):
    """The accuracy of a setting over the seeds of an attack."""

    mean: float
    deviation: float | None  # standard deviation; None where there is one seed

    def __str__(self) -> str:
        """Percent, as "30.0 ± 7.1"."""
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.deviation:.1f}" if self.deviation is not None else "")


def sweep_means(rows: Sequence[SettingAccuracy]) -> dict[tuple[str, float, str, int], Spread]:
    """Takes together the rows of a sweep that differ in the seed of the attack alone.

    Returns:
        Accuracies by images, sigma, voting and samples.
    """
    groups: defaultdict[tuple[str, float, str, int], list[float]] = defaultdict(list)
    for row in rows:
        groups[row.images, row.sigma, row.voting, row.samples].append(row.accuracy)
    return {key: Spread(mean(values), stdev(values) if len(values) > 1 else None) for key, values in groups.items()}


def sweep_table(rows: Sequence[SettingAccuracy], width: int | None = None) -> str:
    """Writes accuracy in percent by images, sigma and voting (rows) and number of samples (columns), in markdown of a
    width that `markdown` describes."""
    found = sweep_means(rows)
    samples = sorted({row.samples for row in rows})
    lines = dict.fromkeys((images, sigma, voting) for images, sigma, voting, _ in found)
    body = [
        [images, f"{sigma:g}", voting, *(str(found.get((images, sigma, voting, number), "")) for number in samples)]
        for images, sigma, voting in lines
    ]
    return markdown(["images", "sigma", "voting", *(str(number) for number in samples)], body, width, keys=3)
