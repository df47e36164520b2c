"""Certification by one process and by more, one thread each, as whole commands: their time, and whether logs differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from . import harness

COUNTS = (1, 2)
IMAGES, N0, N, REPEATS = 200, 100, 300, 3
LAUNCH = ("torch.distributed.run", "--standalone")
ALONE = "1 process"  # without a launcher

Log = dict[str, list[str]]  # columns


def main(out: Path | None, images: int = IMAGES) -> list[harness.Row]:
    """The embedded images with 300 samples each, and 100 that select: half a minute of one thread."""
    return harness.report(groups(images, N, COUNTS, "compiled", REPEATS), out)


def groups(images: int, n: int, counts: Sequence[int], runner: str, repeats: int) -> Iterator[list[harness.Row]]:
    """Rows against a process without a launcher: seconds of the command; microseconds of sampling, by the times in the
    log, in the mean over its processes; and the share of images whose rows differ in more than their time."""
    processes = {ALONE: 1} | {f"launched, {count} process{'es' * (count > 1)}": count for count in counts}
    logs: dict[str, list[Log]] = {name: [] for name in processes}
    options = ["--max", str(images), "--n0", str(N0), "--n", str(n), "--runner", runner]
    contenders = {name: partial(_certify, name, count, options, logs[name]) for name, count in processes.items()}
    took, _ = harness.timed(contenders, repeats)
    sampling = {
        name: [sum(map(float, log["time"])) / count / (images * (N0 + n)) * 1e6 for log in logs[name][-repeats:]]
        for name, count in processes.items()
    }
    rows = {name: _untimed(written[-1]) for name, written in logs.items()}
    differing = {
        name: [row != other for row, other in zip(own, rows[ALONE], strict=True)] for name, own in rows.items()
    }
    setting = f"ResNet-20, {runner}, {images} images, n = {n:,}, one thread each"
    yield harness.rows("processes", setting, took, "s", [ALONE])
    yield harness.rows("processes", setting, sampling, "us/sample", [ALONE])
    yield harness.means("processes", setting, differing, "share of rows differing")


def _certify(name: str, count: int, options: Sequence[str], logs: list[Log]) -> None:
    """Runs the command, and keeps its log."""
    # Without the -- torchrun takes --n for an abbreviation of its own options.
    launcher = [] if name == ALONE else [*LAUNCH, f"--nproc-per-node={count}", "-m", "--"]
    with TemporaryDirectory() as folder:
        out = Path(folder) / "certify.tsv"
        harness.whole_process(
            *launcher, "smoothfast", "certify", "--seed", "0", *options, "--out", str(out), OMP_NUM_THREADS="1"
        )
        head, *rows = (line.split("\t") for line in out.read_text().splitlines())
    logs.append({column: list(cells) for column, cells in zip(head, zip(*rows, strict=True), strict=True)})


def _untimed(log: Log) -> list[tuple[str, ...]]:
    return list(zip(*(cells for column, cells in log.items() if column != "time"), strict=True))
