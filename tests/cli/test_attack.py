"""smoothfast attack: its file, picture and tables, resuming, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toys import LABELS, WEIGHTS, Run, attack_arguments, check_error
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.stats import binomtest

from smoothfast import SmoothedClassifier, data, models
from smoothfast.attacks import EPGD
from smoothfast.cli import prepare
from smoothfast.evaluation import base_votes
from smoothfast.runs import attack_files, plots

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def attack(run: Run, toys: Path) -> Run:
    return lambda *flags, **options: run(*attack_arguments(toys, **options), *flags)


IN_THREE: dict[str, Any] = {"batch": 1, "samples": 4}  # batches of 2 images


def columns_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_attack_writes_a_file_a_picture_and_tables(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    gallery = plots.perturbation_gallery
    monkeypatch.setattr(plots, "perturbation_gallery", lambda *given: shown.extend(given[2]) or gallery(*given))
    result = attack(out="deep/adv.safetensors", picture="pictures/adv.png")
    assert result.status == 0, result.err
    assert '6 images, epgd on the smoothed classifier: {"eps": 0.2' in " ".join(result.err.split())
    assert "attack: eager base classifier, precision fp32" in result.err
    assert "votes: eager base classifier, precision fp32, normalisation none" in result.err
    assert "written: deep/adv.safetensors\nwritten: pictures/adv.png" in result.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adv.png", "adv.safetensors", "deep", "pictures"]
    assert (tmp_path / "pictures/adv.png").read_bytes().startswith(b"\x89PNG")

    columns = columns_of(tmp_path / "deep/adv.safetensors")
    classes, ends = ("grey", "dim", "bright"), columns["smoothed_adversarial"].argmax(1).tolist()
    assert shown == [
        f"label: {classes[label]}\nclean: {classes[clean]}\n→ adversarial: {classes[end]}"
        for label, clean, end in zip(LABELS[:6], [0, 1, 2, 0, 1, 2], ends, strict=True)
    ]
    assert columns["labels"].tolist() == LABELS[:6]
    assert columns["indices"].tolist() == list(range(6))
    assert (
        columns["base_clean"].argmax(1).tolist() == columns["smoothed_clean"].argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.out.splitlines()]
    assert rows[0] == ["classifier", "clean accuracy (95% interval)", "adversarial accuracy (95% interval)"]
    assert rows[2] == ["base, without noise", *(accuracy_of(columns, f"base_{of}") for of in ("clean", "adversarial"))]
    assert rows[3] == [
        "smoothed, 50 votes",
        *(accuracy_of(columns, f"smoothed_{of}") for of in ("clean", "adversarial")),
    ]
    assert rows[3][1].startswith("0.833 (0.359 .. 0.996)")
    assert rows[3][2] < rows[3][1]
    moved = [f"{value:.4f}" for norm in ("linf", "l2") for value in (columns[norm].max(), columns[norm].mean())]
    assert rows[7] == ["epgd", "12", "12", *moved, rows[7][-1]]
    fooled = (columns["smoothed_clean"].argmax(1) == columns["labels"]) & (
        columns["smoothed_adversarial"].argmax(1) != columns["labels"]
    )
    assert rows[7][-1] == f"{columns['l2'][fooled].mean():.4f}"
    assert moved[0] == "0.2000"


def accuracy_of(columns: dict[str, torch.Tensor], name: str) -> str:
    correct = int((columns[name].argmax(1) == columns["labels"]).sum())
    low, high = binomtest(correct, len(columns["labels"])).proportion_ci(0.95, "exact")
    return f"{correct / len(columns['labels']):.3f} ({low:.3f} .. {high:.3f})"


def test_attack_is_the_api_called_directly(attack: Run, tmp_path: Path) -> None:
    assert attack(skip=2, max=3, runner="eager").status == 0
    columns = columns_of(tmp_path / "adv.safetensors")
    base = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).eval()
    base.load_state_dict(WEIGHTS)
    model = SmoothedClassifier(base, 0.3, 3, seed=3, precision="fp32", max_batch=16, runner="eager")
    images = torch.stack([torch.full((3, 4, 4), round(255 * level)) for level in (0.5, 0.9, 0.2)]).byte()
    labels = [0, 2, 1]
    epgd = EPGD(model, 0.2, steps=3, samples=4, seed=3, precision="fp32", max_batch=16, runner="eager")
    adversarial = epgd(images, labels, [0, 2, 4])
    assert columns["adversarial"].equal(adversarial)
    assert columns["smoothed_adversarial"].equal(model.votes(adversarial, 50, [0, 2, 4]))
    assert columns["base_adversarial"].equal(base_votes(model, adversarial))


def test_attack_records_what_repeats_it(attack: Run, tmp_path: Path) -> None:
    assert attack(skip=2, alpha="1e-2", source="base", targeted="random").status == 0
    with safe_open(tmp_path / "adv.safetensors", "pt") as file:
        about = json.loads(file.metadata()["run"])
    assert len(about["settings"].pop("weights")) == len(about["settings"]["judged_by"].pop("weights_sha256")) == 64
    assert about["settings"] == {
        "command": "attack", "attack": "epgd", "source": "base", "votes": 50, "eps": 0.2, "alpha": 0.01, "steps": 3,
        "samples": 4, "norm": "linf", "restarts": 1, "loss": "ce", "targeted": "random",
        "data": "smoothfast_toys:images", "model": "smoothfast_toys:model", "sigma": [0.3], "normalize": None,
        "seed": 3, "skip": 2, "max": 6, "taken": "evenly",
        "crafted_by": {"runner": "eager", "precision": "fp32", "micro_batch": 16},
        "judged_by": {
            "runner": "eager", "precision": "fp32", "micro_batch": 16, "device": "cpu", "law": "gaussian",
            "clip": False,
        },
    }  # fmt: skip
    assert (about["gradients"], about["forwards"]) == (4 * 12, 4 * 12)
    assert "smoothfast" in about["environment"]


def test_attack_gives_the_same_bytes_twice(attack: Run, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        for number, (out, seed) in enumerate((("a", 3), ("b", 3), ("c", 4))):
            torch.manual_seed(number)
            assert attack(out=f"{out}.safetensors", seed=seed).status == 0
    a, b, c = ((tmp_path / f"{out}.safetensors").read_bytes() for out in "abc")
    assert a == b != c
    assert attack(out="d.safetensors", batch=5).status == 0
    few, many = columns_of(tmp_path / "d.safetensors"), columns_of(tmp_path / "a.safetensors")
    assert all(few[name].equal(many[name]) for name in many)


def test_an_attack_overwrites_nothing_and_leaves_nothing_half(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adv.safetensors").write_text("mine")
    check_error(attack(), "adv.safetensors exists: go on with it (--resume) or choose another --out")
    assert (tmp_path / "adv.safetensors").read_text() == "mine"
    monkeypatch.setenv("INTERRUPT_AT", "4")
    assert attack(out="deep/adv.safetensors", picture="deep/adv.png").status == 130
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("tables", [True, False])
def test_an_attack_on_a_full_disk_keeps_what_is_written(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: bool
) -> None:
    def full(columns: dict[str, torch.Tensor], *about: Any) -> None:
        if len(columns["indices"]) == 6 if tables else 4 in columns["indices"]:
            raise SafetensorError("No space left on device")
        save_file(columns, *about)

    with monkeypatch.context() as patch:
        patch.setattr(attack_files, "save_file", full)
        result = attack(**IN_THREE)
    assert result.status == 1
    assert "No space left on device" in result.err.splitlines()[-1]
    assert ("| smoothed, 50 votes" in result.out) is tables
    assert list(tmp_path.iterdir()) == [tmp_path / "adv.parts"]
    assert len(list((tmp_path / "adv.parts").iterdir())) == 2 + tables
    assert attack("--resume", **IN_THREE).status == 0


def test_an_interrupted_attack_resumes_to_the_same_bytes(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attack("--resume", out="whole.safetensors", **IN_THREE)  # there is nothing to go on with
    assert whole.status == 0, whole.err
    monkeypatch.setenv("INTERRUPT_AT", "4")
    for flags in ([], ["--resume"]):
        assert attack(*flags, **IN_THREE).status == 130
        assert len(list((tmp_path / "adv.parts").iterdir())) == 2
        assert not (tmp_path / "adv.safetensors").exists()
    check_error(attack(**IN_THREE), "adv.parts exists: go on with it (--resume) or choose another --out")
    monkeypatch.setenv("INTERRUPT_AT", "2")  # is not attacked again
    resumed = attack("--resume", **IN_THREE)
    assert resumed.status == 0, resumed.err
    assert resumed.out == whole.out
    assert (tmp_path / "adv.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    monkeypatch.delenv("INTERRUPT_AT")
    (tmp_path / "adv.parts").mkdir()  # killed before it was gone
    assert attack("--resume", picture="adv.png", **IN_THREE).out == whole.out  # nothing is left to do
    assert (tmp_path / "adv.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adv.png", "adv.safetensors", "whole.safetensors"]


def test_a_killed_attack_resumes_to_the_same_bytes(attack: Run, toys: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smoothfast", *attack_arguments(toys, **IN_THREE)]
    environment = os.environ | {"KILL_AT": "4", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True).returncode == 9
    assert len(list((tmp_path / "adv.parts").iterdir())) == 2
    assert attack("--resume", **IN_THREE).status == 0
    assert attack(out="whole.safetensors", **IN_THREE).status == 0
    assert (tmp_path / "adv.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_an_attack_goes_on_with_its_own_settings_alone(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERRUPT_AT", "4")
    assert attack(**IN_THREE).status == 130
    monkeypatch.delenv("INTERRUPT_AT")
    first, second = sorted((tmp_path / "adv.parts").iterdir())
    before = [first.read_bytes(), second.read_bytes()]
    for option, value, old, new in (
        ("eps", 0.1, "0.2", "0.1"), ("steps", 4, "3", "4"), ("votes", 60, "50", "60"), ("seed", 4, "3", "4"),
        ("attack", "smoothadv", '"epgd"', '"smoothadv"'), ("source", "base", '"smoothed"', '"base"'),
        ("max", 5, "6", "5"),
    ):  # fmt: skip
        result = attack("--resume", **IN_THREE | {option: value})
        check_error(result, f"{first.name} was made with other settings: ", f"{option} was {old}, is now {new}")
    result = attack("--resume", **IN_THREE | {"batch": 2})
    check_error(result, 'crafted_by was {"micro_batch": 1, ', 'is now {"micro_batch": 2, ', "judged_by was ")
    assert [first.read_bytes(), second.read_bytes()] == before
    second.write_bytes(before[1][:-1])
    check_error(attack("--resume", **IN_THREE), f"adv.parts/{second.name} is cut off, or no file of an attack")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [first.name, second.name, "adv.parts"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"attack": "magic"}, "attack is 'magic'; it must be one of fgsm, pgd, epgd, smoothadv, multi-targeted"),
        ({"attack": "fgsm"}, "steps is 3; attack 'fgsm' takes none, as pgd, epgd"),
        ({"attack": "smoothadv", "loss": "ce"}, "loss is 'ce'; attack 'smoothadv' takes none, as fgsm, pgd, epgd, "),
        ({"attack": "multi-targeted", "targeted": "none"}, "targeted is 'none'; attack 'multi-targeted' takes none"),
        ({"eps": "8/0"}, "eps is '8/0'; it must be a number as 0.03 or 8/255"),
        ({"eps": "much"}, "eps is 'much'"),
        ({"eps": "nan"}, "eps is 'nan'"),
        ({"eps": "1e999"}, "eps is '1e999'"),
        ({"alpha": "8/255/2"}, "alpha is '8/255/2'"),
        ({"votes": 0}, "votes is 0; it must be at least 1"),
        ({"runner": "fast"}, "runner is 'fast'; it must be one of auto, eager"),
        ({"out": "adv.pt"}, "out is 'adv.pt'; it must end in .safetensors"),
        ({"picture": "adv.xyz"}, "picture is 'adv.xyz'; its suffix must be one of"),
    ],
)
def test_attack_refuses_settings_before_anything_is_loaded(
    attack: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], part: str
) -> None:
    def untouchable(*_: Any) -> None:
        raise AssertionError("loaded before the settings were checked")

    for module, name in ((models, "load"), (data, "load"), (prepare, "read_weights")):
        monkeypatch.setattr(module, name, untouchable)
    check_error(attack(**options), part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "part", "status"),
    [
        ({"eps": "-1/255"}, "eps is -0.00392", 2),
        ({"alpha": "-0.1"}, "alpha is -0.1; it must be at least 0", 2),
        ({"steps": 0}, "steps is 0; it must be at least 1", 2),
        ({"samples": 0}, "samples is 0; it must be at least 1", 2),
        ({"restarts": 0}, "restarts is 0", 2),
        ({"norm": "l1"}, "norm is 'l1'; it must be one of linf, l2", 2),
        ({"loss": "best"}, "loss is 'best'; it must be one of ce, margin, dlr", 2),
        ({"source": "both"}, "source is 'both'; it must be one of smoothed, base", 2),
        ({"targeted": "cat"}, "targeted is 'cat'; it must be one of none, random, least-likely", 2),
        ({"sigma": 0}, "sigma is 0", 2),
        ({"seed": -1}, "seed is -1", 2),
        ({"batch": 0}, "batch is 0; it must be at least 1", 2),
        ({"max": 0}, "max is 0", 2),
        ({"precision": "int4"}, "precision is 'int4'", 2),
        ({"classes": 4}, "the model has (4, 48)", 2),
        ({"data": "smoothfast_toys:empty"}, "which holds no images", 2),
        ({"data": "smoothfast_toys:uneven"}, "image 1 is torch.uint8 (3, 3, 4)", 1),
        ({"out": "file/adv.safetensors"}, "file", 2),
        ({"picture": "folder.png"}, "Is a directory: 'folder.png'", 2),
    ],
)
def test_attack_complains_in_one_line_and_leaves_no_file(
    attack: Run, tmp_path: Path, options: dict[str, Any], part: str, status: int
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    check_error(attack(**options), part, status=status)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]
