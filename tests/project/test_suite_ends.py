"""A test that crashes or hangs ends the suite, as `make test` runs it, with its name and a status that says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PASSES = "import pytest\n@pytest.mark.parametrize('number', range(4))\ndef test_passes(number): pass\n"
CRASHES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
ENDINGS = {
    "crash": (CRASHES, "Segmentation fault"),
    "wait in C": ("import ctypes; ctypes.CDLL(None).pause()", "Timeout"),
    "wait in C that keeps the interpreter's lock": ("import ctypes; ctypes.PyDLL(None).pause()", "Timeout"),
}


def make_test(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Runs a file of tests after and before others that pass."""
    for name in ("before", "and", "after", "finally"):
        folder.joinpath(f"test_{name}.py").write_text(PASSES)
    folder.joinpath("test_between.py").write_text(body)
    files = [folder / f"test_{name}.py" for name in ("before", "and", "between", "after", "finally")]
    (options,) = re.findall(r"\$\(BIN\)/pytest (.*) \$\(ARGS\)", (ROOT / "Makefile").read_text())
    options = options.replace("-n auto", "-n 2").split()  # the same on any machine
    options += ["-c", ROOT / "pyproject.toml", "--rootdir", folder, "-p", "no:cacheprovider", "--timeout", "2"]
    for plugin in ("xdist.plugin", "pytest_timeout", "helpers.watchdog"):  # others take seconds to import
        options += ["-p", plugin]
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", *options, *files]
    return subprocess.run(command, env=environment, timeout=120, check=False, **pipe)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_bad_test_is_named(ending: str, tmp_path: Path) -> None:
    statement, word = ENDINGS[ending]
    body = f"def test_first(): pass\n\ndef test_bad():\n    {statement}\n\ndef test_last(): pass\n"
    done = make_test(tmp_path, body)
    assert done.returncode == 1, done.stdout
    assert re.search(r"crashed while running '.*test_between\.py::test_bad'", done.stdout), done.stdout
    assert word in done.stdout
    assert re.search(r'test_between\.py", line \d+ in test_bad', done.stdout), done.stdout  # the stacks


def test_a_crash_between_tests_is_a_failure(tmp_path: Path) -> None:
    done = make_test(tmp_path, f"import os\nif os.environ.get('PYTEST_XDIST_WORKER') == 'gw1':\n    {CRASHES}")
    assert done.returncode != 0, done.stdout
    assert re.search(r'test_between\.py", line \d+ in <module>', done.stdout), done.stdout
