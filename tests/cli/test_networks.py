"""Networks of the user's own by the command line: code in the working folder, checkpoints, normalisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toys import CENTRES, WEIGHTS, Run, attack_arguments, check_error
from safetensors.torch import save_file

from smoothfast.runs.logs import read_log

pytestmark = pytest.mark.usefixtures("one_thread")

NET = """
import torch
from torch import nn

CENTRES = torch.tensor([0.5, 0.1, 0.9])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("centres", CENTRES)

    def forward(self, x):
        return -(x.mean((1, 2, 3))[:, None] - self.centres) ** 2


class Sized(Net):
    def __init__(self, n_classes):
        super().__init__()
        self.centres = self.centres[:n_classes]


class Fails(Net):
    def forward(self, x):
        return self.lacking(x)


def build(num_classes=3):
    return Net()


def broken():
    return torch.zeros(2) @ torch.zeros(3)


def needy(depth, width):
    return Net()


network = Net()
function = lambda images: network(images)
made = lambda: Net()
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The working folder, with a module in it that has a name of its own, as modules are imported once."""
    name = f"net_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NET)
    return tmp_path / f"{name}.py"


def own(certify: Run, spec: str, **options: Any) -> Any:
    return certify(model=spec, weights=None, **options)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *(("{stem}", name) for name in ("Net", "Sized", "build", "network", "function", "made")),
        ("./{stem}.py", "Net"), ("{path}", "function"),
    ],
)  # fmt: skip
def test_forms_of_networks_in_the_working_folder(certify: Run, here: Path, form: str, name: str) -> None:
    result = own(certify, f"{form.format(stem=here.stem, path=here)}:{name}", max=3, runner="eager")
    assert result.status == 0, result.err
    assert read_log(here.parent / "run.tsv").predict.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("broken", ["which raised RuntimeError", "{stem}.py:33, in broken"]),
        ("Fails", ["fails on images (3, 4, 4): AttributeError", "{stem}.py:25, in forward"]),
        ("needy", ["takes depth, width; it must take num_classes= or nothing"]),
        ("Nett", ["has no 'Nett'; near: Net"]),
    ],
)
def test_own_code_that_fails_is_one_line_with_its_place(certify: Run, here: Path, name: str, parts: list[str]) -> None:
    result = own(certify, f"{here.stem}:{name}")
    check_error(result, *(part.format(stem=here.stem) for part in parts))
    assert len(result.err.splitlines()) == 1
    assert "torch/" not in result.err


def test_a_module_that_fails_when_it_is_imported(certify: Run, tmp_path: Path) -> None:
    (tmp_path / "cannot_run.py").write_text("x = 1\ny = x / 0\n")
    check_error(own(certify, "cannot_run:f"), "ZeroDivisionError: division by zero (cannot_run.py:2, in <module>)")
    (tmp_path / "cannot_read.py").write_text("def (:\n")
    check_error(own(certify, "./cannot_read.py:f"), "SyntaxError", "cannot_read.py, line 1")


@pytest.mark.parametrize("spec", ["mynett:Net", "./mynett.py:Net"])
def test_a_module_that_is_not_there_comes_before_weights(certify: Run, tmp_path: Path, spec: str) -> None:
    (tmp_path / "mynet.py").write_text(NET)
    check_error(certify(model=spec, weights="none.pt"), f"model is '{spec}'", "there is no", "; near: mynet")


def test_classes_that_contradict(certify: Run, here: Path) -> None:
    check_error(own(certify, f"{here.stem}:network", classes=4), "classes is 4, and the model returns 3")


@pytest.mark.parametrize("device", ["xpu", "meta", "mps:7"])
def test_devices_that_are_not_there(certify: Run, device: str) -> None:
    result = certify(device=device)
    check_error(result, f"device is '{device}', which cannot be used")
    assert len(result.err) < 300


# ---- normalisation ---------------------------------------------------------------------------------------------------

FRONT = {"epoch": 3, "state_dict": {f"1.head{name[1:]}": value for name, value in WEIGHTS.items()}}
HALF = {"0.mean": torch.full((3,), 0.5), "0.std": torch.full((3,), 0.25)}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("cifar10-cohen", [[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201]]),
        ("0.4914,0.4822,0.4465/0.2023,0.1994,0.2010", [[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201]]),
    ],
)
def test_statistics_are_recorded_as_numbers_and_replayed(
    certify: Run, run: Run, toys: Path, tmp_path: Path, text: str, numbers: list[list[float]]
) -> None:
    assert certify(normalize=text, max=2).status == 0
    assert read_log(tmp_path / "run.tsv").settings["normalize"] == numbers
    specs = ["--model=smoothfast_toys:model", "--data=smoothfast_toys:images", f"--weights={toys / 'toy.safetensors'}"]
    result = run("replay", "run.tsv", *specs)
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("125,123,114/63,62,66", "did you mean these numbers / 255?"),
        ("0.5,0.5/0.2", "2 means and 1 deviations"),
        ("0.5/0", "deviations positive"),
        ("nan/1", "means must be finite"),
        ("0.5", "it must be one of none, cifar10"),
    ],
)
def test_statistics_that_cannot_be(certify: Run, text: str, part: str) -> None:
    check_error(certify(normalize=text), "normalize ", part)


def test_a_layer_in_front_of_which_nobody_tells_is_an_error(certify: Run, tmp_path: Path) -> None:
    torch.save(FRONT, tmp_path / "front.pt")
    check_error(
        certify(weights="front.pt", model="smoothfast_toys:Flat", normalize=None),
        "in front.pt a layer stands in front of the network", "pass --normalize", "none says that there is nothing",
    )  # fmt: skip
    assert certify(weights="front.pt", model="smoothfast_toys:Flat", max=1).status == 0


@pytest.mark.parametrize(
    ("more", "arch", "numbers"),
    [(HALF, "", [[0.5] * 3, [0.25] * 3]), ({}, "cifar_resnet110", [[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201]])],
)
def test_a_layer_in_front_is_taken_from_the_checkpoint(
    certify: Run, tmp_path: Path, more: dict[str, Any], arch: str, numbers: list[list[float]]
) -> None:
    torch.save({"state_dict": FRONT["state_dict"] | more, "arch": arch}, tmp_path / "front.pt")
    result = certify(weights="front.pt", model="smoothfast_toys:Flat", normalize=None, max=1)
    assert result.status == 0, result.err
    assert "normalisation 0." in result.err
    assert read_log(tmp_path / "run.tsv").settings["normalize"] == numbers


def test_a_normalisation_that_nobody_tells_is_a_warning_with_the_accuracy(
    certify: Run, run: Run, toys: Path, tmp_path: Path
) -> None:
    result = certify(normalize=None)
    assert result.status == 0
    assert result.err.count("warning: nothing in") == 1
    assert "right on 5 of the first 7 images (71.4 %; chance 33.3 %)" in " ".join(result.err.split())
    settings = json.dumps({"normalize": None})
    save_file(WEIGHTS, tmp_path / "told.safetensors", {"settings": settings})
    assert "warning" not in certify(normalize=None, weights="told.safetensors", out="told.tsv").err
    assert "warning: nothing in" in run(*attack_arguments(toys, normalize=None)).err


def test_centres_are_those_of_the_toys() -> None:
    assert "[0.5, 0.1, 0.9]" in NET
    torch.testing.assert_close(CENTRES, torch.tensor([0.5, 0.1, 0.9]))
