"""docs/your-data.md: its examples, as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers.pictures import pixels, write_image, zipped

from smoothfast import cli
from smoothfast.runs.logs import read_log

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = (Path(__file__).parents[2] / "docs" / "your-data.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures in a folder and in a zip file, and the module of the example."""
    for number in range(20):
        write_image(
            tmp_path / "pictures" / f"class-{number // 2}" / f"{number}.png", pixels(number, 3, 40, 36 + number)
        )
    zipped(tmp_path / "pictures", tmp_path / "pictures.zip")
    (module,) = (block for language, block in BLOCKS if language == "python" and block.startswith("# mydata.py"))
    (tmp_path / "mydata.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_commands(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        program, *words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", [program, *words, "--runner=eager", "--max=1", "--seed=1"])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code, command
    logs = [read_log(place / "runs" / f"{name}.tsv") for name in ("pictures", "zipped", "mine")]
    assert [len(log) for log in logs] == [1, 1, 1]
    assert logs[0].nA is not None
    assert logs[0].nA.tolist() == logs[1].nA.tolist()


def test_python(capsys: pytest.CaptureFixture[str]) -> None:
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "your-data.md", "exec"), {})
    assert re.fullmatch(r"200 \(3, 12, 12\) \w+\n", capsys.readouterr().out)
