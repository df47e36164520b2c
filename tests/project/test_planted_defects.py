"""Mistakes planted in a copy of the package, one at a time: each that would void a certificate makes the suite fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
EXACT, FIXED, STATISTICS = (
    "tests/procedures/test_exact_errors.py", "tests/smoothing/test_fixed_function.py",
    "tests/statistics/test_statistics.py",
)  # fmt: skip
DEFECTS = {
    "alpha doubled, one look": ("procedures/certify.py", "(alpha,)", "(2 * alpha,)", EXACT),
    "alpha doubled, sequential": (
        "statistics/sequential.py",
        "own_level = float(top_level(alpha, bound))",
        "own_level = float(top_level(2 * alpha, bound))",
        EXACT,
    ),
    "boundaries not monotone": (
        "statistics/sequential.py",
        "np.maximum.accumulate(boundary[:, order], 1)",
        "boundary[:, order]",
        "tests/statistics/test_sequential.py",
    ),
    "alpha doubled, predict": (
        "procedures/predict.py",
        "p_values <= self._alpha",
        "p_values <= 2 * self._alpha",
        EXACT,
    ),
    "radius rounded up": (
        "statistics/radii.py",
        "quantile * (1 - _QUANTILE_MARGIN * np.sign(quantile))",
        "quantile * (1 + 3 * _QUANTILE_MARGIN * np.sign(quantile))",
        STATISTICS,
    ),
    "selection samples used again": (
        "procedures/certify.py",
        "Seen(Stream.ESTIMATE, looks)",
        "Seen(Stream.SELECT, looks)",
        "tests/procedures/test_procedures.py",
    ),
    "noise 1 % smaller": (
        "ops/laws.py",
        "(510 * mp.mpf(sigma))",
        "(505 * mp.mpf(sigma))",
        "tests/test_noise.py",
    ),
    "noise shifted by 1 % of a level": (
        "ops/laws.py",
        "mp.mpf(2 * i + 1)",
        "mp.mpf(2 * i + 1.02)",
        "tests/test_noise.py",
    ),
    "non-finite logits ignored": (
        "statistics/bounds.py",
        "counts = np.asarray(counts)\n    top",
        "counts = np.asarray(counts)[..., :-1]\n    top",
        "tests/procedures/test_procedures.py",
    ),
    "fingerprint blind to buffers": ("modules.py", "    yield from base.named_buffers()\n", "", FIXED),
    "fingerprint blind to order": (
        "modules.py",
        "here = values.cpu().contiguous()",
        "here = values.cpu().reshape(-1).sort().values",
        FIXED,
    ),
    "hooks not looked at": ("modules.py", "*part._forward_hooks.values()", "", FIXED),
    "rows tested among noise alone": (
        "engine/votes.py",
        "(torch.full_like(rows, slot) for slot in self._extremes)",
        "(rows for _ in self._extremes)",
        FIXED,
    ),
    "rows equal up to rounding called sound": (
        "engine/votes.py",
        "self._agreements == {EXACT}",
        "NO not in self._agreements",
        FIXED,
    ),
    "actual rows not looked at": ("engine/votes.py", "if is_looked_at(self._handed_out)", "if False", FIXED),
}


@pytest.mark.parametrize(("file", "right", "wrong", "tests"), DEFECTS.values(), ids=DEFECTS)
def test_a_planted_defect_is_found(file: str, right: str, wrong: str, tests: str, tmp_path: Path) -> None:
    package = tmp_path / "smoothfast"
    shutil.copytree(ROOT / "smoothfast", package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (package / file).read_text()
    assert text.count(right) == 1, "the line to be spoilt is not there once"
    (package / file).write_text(text.replace(right, wrong))
    found = suite(tests, tmp_path)
    assert found.returncode == 1, found.stdout  # 1: a test failed; others: pytest did not come to run any
    assert "1 failed" in found.stdout


def test_a_copy_that_is_not_spoilt_passes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "smoothfast", tmp_path / "smoothfast", ignore=shutil.ignore_patterns("__pycache__"))
    for tests in {defect[-1] for defect in DEFECTS.values()}:
        found = suite(tests, tmp_path)
        assert found.returncode == 0, found.stdout


def suite(tests: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a file of tests on the package in a folder, where Python looks first."""
    options = "-q", "-x", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"
    command = [sys.executable, "-m", "pytest", *map(str, options), str(ROOT / tests)]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
