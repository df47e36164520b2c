"""The tables of README.md from the rows in sweeps/: `report.py`. `report.py sigma NAME`: where that network is best."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from smoothfast.runs.sweep_log import read
from smoothfast.runs.sweep_tables import Spread, sweep_means
from smoothfast.runs.tables import markdown

HERE = Path(__file__).parent
NETWORKS = ("adversarial", "pni-w", "cni-w", "cni-i+w", "epgd", "high-k")
RULES = ("prediction", "soft", "weighted")
NORMALISED = 4.05  # sigmas of the paper are of normalised images: 1 over the mean standard deviation of the channels

Means = dict[tuple[str, float, str, int], Spread]


def found(network: str, what: str) -> Means:
    """Mean accuracy and its spread over seeds, by images, sigma, rule and samples."""
    return sweep_means(read(HERE / "sweeps" / f"{network}-{what}.csv"))


def grid(network: str) -> Means:
    """By sigma, all under the attack that sees no noise but the network's own."""
    return found(network, "sigma") | found(network, "wide")


def best_sigma(network: str) -> float:
    """Where 32 votes are right most often under PGD. A network without noise of its own has nothing to vote on at 0."""
    under_attack = {
        sigma: accuracy
        for (images, sigma, rule, samples), (accuracy, _) in grid(network).items()
        if (images, rule, samples) == ("pgd", "prediction", 32)
    }
    return max(under_attack, key=lambda sigma: under_attack[sigma])


def training() -> str:
    """What each network went through, and the accuracy of single passes on the held-out images."""
    rows = []
    for network in ("clean", *NETWORKS):
        lines = [json.loads(line) for line in (HERE / "trained" / network / "metrics.jsonl").read_text().splitlines()]
        last, minutes = lines[-1], sum(line["seconds"] for line in lines) / 60
        held_out = [f"{100 * last[name]:.1f}" if name in last else "" for name in HELD_OUT]
        rows.append([network, f"{last['loss']:.2f}", *held_out, f"{minutes:.0f}"])
    heads = [
        "network",
        "loss",
        "clean, batches",
        "PGD, batches",
        "clean, held out",
        "PGD, held out",
        "minutes, one core",
    ]
    return markdown(heads, rows)


HELD_OUT = (
    "train_accuracy", "train_adversarial_accuracy", "validation_accuracy", "validation_adversarial_accuracy",
)  # fmt: skip


def accuracies() -> str:
    """Clean and under PGD, as the networks are and smoothed by each rule."""
    rows = []
    for network in NETWORKS:
        single, long, legacy = (found(network, what) for what in ("single", "samples", "legacy"))
        sigma, most = best_sigma(network), max(samples for *_, samples in long)
        alone = [str(single[images, 0.0, "prediction", 1]) for images in ("clean", "pgd")]
        rows.append([network, "none", "0", "1", *alone, ""])
        rows += [
            [network, rule, f"{sigma:g} ({NORMALISED * sigma:.2f})", str(most),
             *(str(long[images, sigma, rule, most]) for images in ("clean", "pgd")),
             str(legacy["pgd-legacy", sigma, rule, 64])]
            for rule in RULES
        ]  # fmt: skip
    return markdown(["network", "smoothing", "sigma", "M", "clean", "PGD", "legacy PGD, M = 64"], rows)


def by_samples() -> str:
    """Accuracy under PGD of majority votes."""
    numbers = [2**power for power in range(10)]
    rows = []
    for network in NETWORKS:
        long, sigma = found(network, "samples"), best_sigma(network)
        cells = [long.get(("pgd", sigma, "prediction", number)) for number in numbers]
        rows.append([network, *("" if cell is None else str(cell) for cell in cells)])
    return markdown(["network", *map(str, numbers)], rows)


def by_sigma() -> str:
    """Clean accuracy and that under PGD of 32 votes."""
    rows = []
    for network in NETWORKS:
        rows_of = grid(network)
        sigmas = sorted({sigma for _, sigma, *_ in rows_of})
        for images in ("clean", "pgd"):
            for rule in RULES:
                most = {
                    sigma: max(n for i, s, r, n in rows_of if (i, s, r) == (images, sigma, rule)) for sigma in sigmas
                }
                cells = [str(rows_of[images, sigma, rule, most[sigma]]) for sigma in sigmas]
                rows.append([network, images, rule, *cells])
    return markdown(["network", "images", "smoothing", *(f"{sigma:g}" for sigma in sigmas)], rows)


def robust() -> str:
    """Majority votes under PGD, and by rule under an attack that averages over the noise, on 250 images."""
    rows = []
    for network in NETWORKS:
        sigma, cells = best_sigma(network), ["not measured"] * 4
        if (HERE / "sweeps" / f"{network}-eot.csv").exists():
            eot = found(network, "eot")
            keys = [("clean", "prediction"), *(("epgd", rule) for rule in RULES)]
            cells = [str(eot[images, sigma, rule, 64]) for images, rule in keys]
        rows.append([network, f"{sigma:g}", str(found(network, "samples")["pgd", sigma, "prediction", 64]), *cells])
    return markdown(["network", "sigma", "PGD, 1,000 images", "clean", *(f"EPGD, {rule}" for rule in RULES)], rows)


def strength() -> str:
    """Majority votes of CNI-W under attacks that spend so many gradients."""
    sigma = best_sigma("cni-w")
    rows = [
        [about, str(found("cni-w", what)[attack, sigma, "prediction", 64])]
        for what, attack, about in (
            ("pgd-7", "pgd", "PGD, k = 7: 7 gradients"),
            ("pgd-56", "pgd", "PGD, k = 56: 56"),
            ("epgd-7x8", "epgd", "EPGD, k = 7 of 8 samples: 56"),
            ("smoothadv-7x8", "smoothadv", "SmoothAdv, k = 7 of 8 samples: 56"),
            ("eot", "epgd", "EPGD, k = 7 of 32 samples, best of 3 starts: 672"),
        )
    ]
    return markdown(["attack", "accuracy"], rows)


TABLES = (training, accuracies, by_samples, by_sigma, robust, strength)

if __name__ == "__main__":
    if sys.argv[1:2] == ["sigma"]:
        print(f"{best_sigma(sys.argv[2]):g}")
    else:
        print("\n\n".join(table() for table in TABLES))
