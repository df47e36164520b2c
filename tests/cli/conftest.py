"""The command line on a small model and data set, in an empty folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.toys import TOYS, WEIGHTS, Result, Run, arguments
from safetensors.torch import save_file

from smoothfast import cli


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the module `smoothfast_toys` and its weights."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "smoothfast_toys.py").write_text(TOYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        save_file(WEIGHTS, folder / "toy.safetensors")
        yield folder


@pytest.fixture
def run(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["smoothfast", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Result(exit_.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def certify(run: Run, toys: Path) -> Run:
    return lambda *flags, **options: run(*arguments("certify", toys, **options), *flags)
