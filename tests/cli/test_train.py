"""smoothfast train: its options, fine-tunes, and the same run in several processes."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.launcher import Launch, Result, start
from helpers.tiny import metrics_of
from safetensors.torch import load_file, save_file

from smoothfast import cli, data
from smoothfast.cli import progress
from smoothfast.weights import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")
several = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this build of torch lacks torch.distributed or gloo",
)

TOYS = """
import os
import signal

import torch
from torch import nn


class Mortal(nn.Sequential):
    passes = 0

    def forward(self, x):
        self.passes += self.training
        if self.training and str(self.passes) == os.environ.get("KILL_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def model(num_classes):
    pooled = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes)
    return Mortal(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), *pooled)


class Images:
    classes = ("a", "b", "c")

    def __len__(self):
        return 52

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=generator), index % 3


def images(split):
    return Images()
"""
BASIC = [
    "train", "--model=smoothfast_trained_toys:model", "--data=smoothfast_trained_toys:images", "--batch=16",
    "--epochs=2", "--precision=fp32", "--validation=20", "--learning-rate=0.1",
]  # fmt: skip
ADVERSARIAL = [*BASIC, "--recipe=adversarial", "--steps=2", "--sigma=0.1", "--eps=16/255"]


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("toys")
    (folder / "smoothfast_trained_toys.py").write_text(TOYS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process."""

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["smoothfast", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Result(exit_.value.code, *capsys.readouterr())

    return call


def complained(result: Result, part: str) -> None:
    last = result.err.splitlines()[-1]
    assert (result.status, last.startswith("smoothfast: "), "Traceback" in result.err) == (2, True, False), result.err
    assert part in last


def settings_of(out: str) -> dict[str, Any]:
    return read_weights(Path(out, "model.safetensors")).settings


# ---- options ---------------------------------------------------------------------------------------------------------


def test_options_override_the_preset(run: Any) -> None:
    assert run(*BASIC, "--preset=siam-adversarial", "--steps=1", "--milestones=1,1.5", "--out=a").status == 0
    settings = settings_of("a")
    assert (settings["recipe"], settings["clip_norm"], settings["select"]) == ("adversarial", 0.05, "best")
    assert (settings["epochs"], settings["batch"], settings["steps"], settings["milestones"]) == (2, 16, 1, [1, 1.5])
    assert len(metrics_of(Path("a"))) == 2
    about = read_weights(Path("a/model.safetensors")).about
    assert (about["model"], about["num_classes"]) == ("smoothfast_trained_toys:model", "3")


def test_a_recipe_has_its_quick_preset(run: Any) -> None:
    assert run(*BASIC, "--out=a").status == 0
    assert run(*BASIC, "--recipe=clean", "--out=b").status == 0
    a, b = settings_of("a"), settings_of("b")
    assert (a["recipe"], a["sigma"]) == ("gaussian", 0.25)
    assert (b["recipe"], b["sigma"]) == ("clean", 0)


def test_a_fine_tune_starts_from_weights_as_they_were_used(run: Any) -> None:
    assert run(*BASIC, "--recipe=clean", "--normalize=none", "--out=base").status == 0
    weights = "--weights=base/model.safetensors"
    words = [*BASIC, weights, "--preset=high-k-finetune", "--steps=2", "--epochs=0.5", "--learning-rate=1e-9"]
    assert run(*words, "--out=tuned").status == 0
    before, after = (load_file(f"{out}/model.safetensors") for out in ("base", "tuned"))
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(before[name], after[name])
    settings = settings_of("tuned")
    assert settings["initial"] == read_weights(Path("base/model.safetensors")).sha256
    assert settings["normalize"] is None
    save_file({name: value + 1 for name, value in before.items()}, "other.safetensors")
    other = [word if word != weights else "--weights=other.safetensors" for word in words]
    complained(run(*other, "--normalize=none", "--out=tuned", "--resume"), "initial was")


def test_resume_goes_on_and_nothing_is_overwritten(run: Any) -> None:
    assert run(*ADVERSARIAL, "--out=a", "--resume").status == 0  # there is no run yet
    before = {path.name: path.read_bytes() for path in Path("a").iterdir()}
    complained(run(*ADVERSARIAL, "--out=a"), "a/checkpoint.pt exists: go on with it (--resume) or choose another --out")
    complained(run(*ADVERSARIAL, "--out=a", "--resume", "--seed=1"), "seed was 0, is now 1")
    assert run(*ADVERSARIAL, "--out=a", "--resume").status == 0
    assert {path.name: path.read_bytes() for path in Path("a").iterdir()} == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--preset=best"], "preset is 'best'; it must be one of cohen, siam-adversarial"),
        (["--recipe=best"], "preset is 'quick-best'; it must be one of"),
        (["--preset=cohen", "--recipe=clean"], "sigma is 0.25; for recipe 'clean' it must be 0"),
        (["--preset=epgd-finetune"], "weights is not given; preset 'epgd-finetune' goes on from trained ones"),
        (["--recipe=adversarial", "--eps=8/0"], "eps is '8/0'; it must be a number as 0.03 or 8/255"),
        (["--milestones=1;2"], "milestones is '1;2'; it must be numbers separated by commas"),
        (["--schedule=multi-step"], "milestones is (); schedule 'multi-step' needs some"),
        (["--recipe=adversarial", "--validation=0"], "select is 'best', which needs validation images"),
        (["--batch=100"], "batch is 100; there are only 32 images to train on"),
        (["--weights=missing.pt"], "No such file"),
        (["--device=nowhere"], "device is 'nowhere', which cannot be used"),
    ],
)
def test_errors_are_one_line(run: Any, words: list[str], part: str) -> None:
    complained(run(*BASIC, *words, "--out=a"), part)
    assert not Path("a").exists()


def test_what_is_wrong_with_the_folder_is_told_before_images_are_read(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*BASIC, "--out=a").status == 0
    Path("file").touch()

    def untouchable(*_: Any) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr(data, "in_memory", untouchable)
    complained(run(*BASIC, "--out=a"), "a/checkpoint.pt exists")
    complained(run(*BASIC, "--out=a", "--resume", "--seed=1"), "seed was 0, is now 1")
    complained(run(*BASIC, "--out=file"), "--out is a file: file; name a folder")
    complained(run(*BASIC, "--out=b", "--device=nowhere"), "device is 'nowhere'")


def test_losses_and_accuracies_are_told_as_it_goes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.Lines, "__enter__", lambda self: self)  # no thread
    monkeypatch.setattr(progress.Lines, "__exit__", lambda self, *_: self._say())
    told = run(*BASIC, "--out=a").err.splitlines()
    shares = r"loss \d\.\d{3}, (train )?accuracy 0\.\d{3}"
    steps = [line for line in told if re.search(rf"epoch \d/2, steps: 2 of 2 done, 0 left; .*; {shares}$", line)]
    assert len(steps) == 2
    ends = [line for line in told if re.match(rf"epoch 1/2: {shares}, validation accuracy 0\.\d+; took .* left$", line)]
    assert len(ends) == 1
    assert any(line.startswith('metrics of these weights: {"epoch": ') for line in told)


# ---- several processes -----------------------------------------------------------------------------------------------


def succeeded(results: list[Result]) -> None:
    for result in results:
        assert result.status == 0, result.err
    assert not any(result.out or result.err for result in results[1:])


def same(one: str, other: str) -> None:
    """Up to rounding: sums over a batch are taken in another order."""
    weights, others = (load_file(f"{out}/model.safetensors") for out in (one, other))
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-4, atol=1e-6)
    for line, theirs in zip(metrics_of(Path(one)), metrics_of(Path(other)), strict=True):
        assert line == pytest.approx(theirs, rel=1e-5)


@several
@pytest.mark.parametrize("recipe", ["adversarial", "smoothadv"])
def test_two_processes_train_as_one(recipe: str) -> None:
    words = [*ADVERSARIAL, f"--recipe={recipe}", "--samples=2", "--train-samples=2"]
    succeeded(start([{}], (*words, "--out=one")))
    succeeded(Launch().run(2, *words, "--out=two"))
    same("one", "two")
    assert sorted(path.name for path in Path("two").iterdir()) == [
        "checkpoint.pt",
        "metrics.jsonl",
        "model.safetensors",
    ]


@several
def test_a_killed_run_goes_on_with_any_number_of_processes() -> None:
    succeeded(start([{}], (*ADVERSARIAL, "--out=one")))
    results = Launch().run(2, *ADVERSARIAL, "--out=two", own={1: {"KILL_AT": "6"}})  # in epoch 1
    assert sorted(result.status for result in results) == [-signal.SIGKILL, 1]
    assert "another process of this run has ended" in results[0].err
    assert "Traceback" not in results[0].err
    assert len(metrics_of(Path("two"))) == 1
    succeeded(start([{}], (*ADVERSARIAL, "--out=two", "--resume")))
    same("one", "two")


@several
def test_processes_must_share_a_batch_equally() -> None:
    results = Launch().run(3, *ADVERSARIAL, "--out=three")
    told = [line for result in results for line in result.err.splitlines() if line.startswith("smoothfast: ")]
    assert [result.status for result in results] == [2, 2, 2]
    assert told == ["smoothfast: batch is 16; 3 processes cannot share it equally"]
    assert not os.path.exists("three")
