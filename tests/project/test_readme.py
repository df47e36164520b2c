"""What the README says is what runs: its Python example and its shell commands, as they stand there."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.launcher import Result, start

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.startswith("smoothfast") and not line.startswith("smoothfast train")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all commands: the later ones read what the earlier ones wrote."""
    return tmp_path_factory.mktemp("readme")


@pytest.fixture
def workplace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, which is the present one."""
    monkeypatch.chdir(folder)
    return folder


def smoothfast(words: list[str]) -> Result:
    """The command, without the seconds that each new interpreter takes to import torch."""
    (done,) = start([{}], tuple(words))
    return done


def test_python_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, in one namespace; what they print is what stands below them, on every processor."""
    names: dict[str, object] = {}
    for (language, block), (after, told) in pairwise([*BLOCKS, ("", "")]):
        if language == "python":
            exec(compile(block, "README.md", "exec"), names)
            printed = capsys.readouterr().out
            assert after != "text" or printed == told
    share = float(re.search(r"under attack: (\S+) \(", printed).group(1))  # of a network in floating point
    assert share < 0.8


def test_it_is_short() -> None:
    assert len(README.split()) <= 900


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, workplace: Path) -> None:
    done = smoothfast(shlex.split(command)[1:])
    assert done.status == 0, done.err
    assert done.out


def test_train_commands(workplace: Path, data_root: Path) -> None:
    """The training commands on a few of the images they name, for one epoch."""
    from zipfile import ZipFile

    with ZipFile(data_root / "cifar10-jpeg.zip") as archive:
        members = [name for name in archive.namelist() if re.search(r"/train/\w+/000[0-9]\.jpg$", name)]
        archive.extractall(workplace, members)
    commands = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("smoothfast train")]
    for command in commands:
        words = [*shlex.split(command), "--epochs", "1", "--batch", "50", "--validation", "10", "--steps", "1"]
        done = smoothfast(words[1:])
        assert done.status == 0, done.err
        assert (workplace / words[words.index("--out") + 1] / "model.safetensors").exists()


def test_make_targets() -> None:
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target


def test_links() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
