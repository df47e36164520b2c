"""docs/your-model.md: its examples, as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

import smoothfast as sf
from smoothfast import cli
from smoothfast.runs.logs import read_log

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = (Path(__file__).parents[2] / "docs" / "your-model.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
(COMMAND,) = re.findall(r"^    (smoothfast .*\\\n.*)$", TEXT, re.MULTILINE)
NETWORK = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, num_classes))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with net.py, net.pt and pictures/."""
    (tmp_path / "net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    demo = sf.data.demo()
    for number, (image, label) in enumerate(zip(demo.images[::10], demo.labels[::10].tolist(), strict=True)):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(tmp_path / "pictures" / str(label) / f"{number}.png")
    torch.manual_seed(0)
    torch.save({"state_dict": {"2.weight": torch.randn(10, 48), "2.bias": torch.zeros(10)}}, "net.pt")
    return tmp_path


def test_command_and_python_agree(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(COMMAND.replace("\\\n", "")))
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    log = read_log(place / "run.tsv")
    assert len(log) == 20
    names: dict[str, object] = {}
    exec(compile(PYTHON[0], "your-model.md", "exec"), names)
    assert names["certificate"].labels.tolist() == log.predict.tolist()[:1]  # type: ignore[attr-defined]


def test_other_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PYTHON[1], "your-model.md", "exec"), {})
    assert capsys.readouterr().out == "torch.Size([4]) torch.Size([4, 20])\n"
