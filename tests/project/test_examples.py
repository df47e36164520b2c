"""The programs in examples/, as they stand there, on few images."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

import smoothfast as sf
from smoothfast import cli

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Twelve images of three classes."""
    monkeypatch.chdir(tmp_path)
    data = sf.data.demo()
    for number in range(12):
        place = tmp_path / "pictures" / f"class{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        to_pil_image(data.images[number]).save(place / f"{number}.png")
    return "pictures"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def ran(name: str, *words: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return ran


def test_own_network(run, pictures: str) -> None:
    told = run("own_network.py", pictures, pictures, "--epochs", 2, "--batch", 6, "--n", 400)
    assert told[0].startswith("accuracy under noise in training: ")
    assert [line.split(":")[0] for line in told[1:4]] == [f"certified at {radius}" for radius in (0.0, 0.25, 0.5)]
    assert told[4].endswith("sound: True")
    assert Path("own/model.safetensors").exists()


def test_evaluation_loop(run, pictures: str) -> None:
    pytest.importorskip("timm")
    (told,) = run(
        "evaluation_loop.py", pictures, "--model", "test_resnet", "--classes", 3, "--samples", 2, "--batch", 8
    )
    assert told.startswith("12 images, right under smoothing: ")


def test_hugging_face(run, pictures: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3)
    transformers.ViTForImageClassification(config).save_pretrained("model")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained("model")
    told = run("hugging_face.py", "model", pictures, "--n", 20, "--images", 2)
    assert len(told) == 2
    assert all(line.endswith("sound: True") or line.endswith("sound: False") for line in told)


def test_attacks_of_others(run) -> None:
    for name in ("torchattacks", "foolbox", "art"):
        pytest.importorskip(name)
    told = run("attacks_of_others.py", "--images", 2, "--steps", 1, "--samples", 1, "--votes", 4)
    assert next(line for line in told if "(" in line).startswith("nothing: ")
    assert len(told) >= 5


def test_second_machine(run, pictures: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    elsewhere = subprocess.run

    def here(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """The command, without the seconds that a new interpreter takes to import torch."""
        if words[0] != "smoothfast":
            return elsewhere(words, **options)
        called.append(words)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", here)
    run("second_machine.py", "write", "--images", 2, "--n", 20)
    told = run("second_machine.py", "check", "--rows", "0")
    assert [words[1] for words in called] == ["quantize", "certify", "replay"]
    assert any("1 row" in line and "the same" in line for line in told)


def test_imagenet_is_a_command_that_there_is() -> None:
    text = (EXAMPLES / "imagenet.sh").read_text()
    subprocess.run(["bash", "-n", str(EXAMPLES / "imagenet.sh")], check=True)
    known = {name for parameter in cli_options("certify") for name in parameter.opts}
    asked = text.partition("smoothfast certify")[2].partition("\n\n")[0].split()
    assert {word for word in asked if word.startswith("--")} <= known


def cli_options(name: str):
    import typer.main

    return typer.main.get_command(cli.app).commands[name].params  # type: ignore[attr-defined]


def test_each_is_short() -> None:
    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES.glob("*.*") if path.suffix != ".md")
