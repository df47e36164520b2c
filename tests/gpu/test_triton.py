"""The Triton kernels without a GPU, run by Triton's interpreter; test_triton_ptx.py is about what Triton compiles.

Triton decides at its import whether it interprets, so these tests have a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def python(*arguments: str | Path, interpret: bool, cache: Path) -> str:
    """What a process prints that finds the files of this folder and keeps what it compiles in `cache`."""
    paths = os.pathsep.join(
        [str(HERE), str(HERE.parent), str(HERE.parent / "ops"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    settings = {"PYTHONPATH": paths, "TRITON_INTERPRET": str(int(interpret)), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, *map(str, arguments)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=HERE.parents[1], env=os.environ | settings, check=False, **pipe)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_kernels(tmp_path: Path) -> None:
    options = ("-q", "-rs", "-p", "no:cacheprovider", "--durations=3")
    print(python("-m", "pytest", *options, HERE / "triton_interpreted.py", interpret=True, cache=tmp_path))


def test_package_of_the_kernels_needs_no_triton(tmp_path: Path) -> None:
    python("-c", "import sys; sys.modules['triton'] = None; import smoothfast.kernels", interpret=False, cache=tmp_path)
