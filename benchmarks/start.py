"""A small certification as a whole process, by runner: with empty caches, and with what that run left in them.

What stays warm is the system's cache of files, and Python's own compiled modules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from . import harness

RUNNERS = ("auto", "eager", "compiled", *(["openvino"] if find_spec("openvino") else []))
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TMPDIR")
IMAGES, N, REPEATS = 10, 1_000, 1


def main(out: Path | None) -> list[harness.Row]:
    """10 embedded images with 1,000 samples each."""
    return harness.report([rows(RUNNERS, IMAGES, N, REPEATS)], out)


def rows(runners: Sequence[str], images: int, n: int, repeats: int) -> list[harness.Row]:
    """Wall time from the command to its end, against the second run of the eager network."""
    figures: dict[str, list[float]] = defaultdict(list)
    command = ["smoothfast", "certify", "--max", str(images), "--n", str(n)]
    for _ in range(repeats):
        for runner in runners:
            with TemporaryDirectory() as folder:
                caches = dict.fromkeys(CACHES, folder)
                for run in ("first run", "second run"):
                    words = [*command, "--runner", runner, "--out", f"{folder}/{run}.tsv"]
                    figures[f"{runner}, {run}"].append(
                        harness.seconds(partial(harness.whole_process, *words, **caches))
                    )
    return harness.rows("start", " ".join(command), figures, "s", ["eager, second run"])
