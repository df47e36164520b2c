"""A data set through an attack: batches, runners, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from smoothfast import SmoothedClassifier, names
from smoothfast.attacks import Square
from smoothfast.data import Images
from smoothfast.evaluation import base_votes, distances
from smoothfast.files import whole
from smoothfast.runs import attack as attack_runs
from smoothfast.runs import attack_files
from smoothfast.runs.attack import ATTACKS, FULL, MEMORY, at_once, make, settle
from smoothfast.runs.attack_files import Attacked, kept
from smoothfast.runs.attack_options import OPTIONS, check_out, options

pytestmark = pytest.mark.usefixtures("one_thread")

INDICES = [0, 2, 3, 5, 6]
ALIKE = (3, 6, 6), 4  # shape of the images, and number of classes
EPS = 16 / 255


@pytest.fixture
def data() -> Images:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (7, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return Images(images, torch.randint(4, (7,), generator=generator))


@pytest.fixture
def smoothed() -> SmoothedClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    statistics = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    return SmoothedClassifier(base, 0.2, 4, normalize=statistics, seed=5, precision="fp32", max_batch=8, runner="eager")


def attacked(
    smoothed: SmoothedClassifier, data: Images, size: int, indices: list[int] = INDICES, **given: Any
) -> Attacked:
    attack = make("epgd", smoothed, "smoothed", options("epgd", {"eps": EPS, "steps": 2, "samples": 3} | given))
    return attack_runs.run(attack, smoothed, data, indices, 20, size)


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_columns_are_what_the_api_gives(smoothed: SmoothedClassifier, data: Images) -> None:
    found = attacked(smoothed, data, 5)
    attack = ATTACKS["epgd"](
        smoothed, eps=EPS, steps=2, samples=3, seed=5, precision="fp32", max_batch=8, runner="eager"
    )
    clean, labels, index = data.images[INDICES].float() / 255, data.labels[INDICES], torch.tensor(INDICES)
    adversarial = attack(data.images[INDICES], labels, INDICES)
    expected = {
        "adversarial": adversarial,
        "labels": labels,
        "indices": index,
        "base_clean": base_votes(smoothed, clean),
        "base_adversarial": base_votes(smoothed, adversarial),
        "smoothed_clean": smoothed.votes(clean, 20, index),
        "smoothed_adversarial": smoothed.votes(adversarial, 20, index),
        "linf": distances(clean, adversarial, "linf"),
        "l2": distances(clean, adversarial, "l2"),
    }
    assert found.columns.keys() == expected.keys()
    assert all(found.columns[name].equal(values) for name, values in expected.items())
    assert (found.gradients, found.forwards) == (attack.gradients, attack.forwards) == (30, 30)
    assert 0.9 * EPS < found.columns["linf"].max() <= EPS


@pytest.mark.parametrize("size", [1, 2, 100])
def test_nothing_depends_on_the_batches(smoothed: SmoothedClassifier, data: Images, size: int) -> None:
    found, whole = attacked(smoothed, data, size, restarts=2), attacked(smoothed, data, 5, restarts=2)
    assert all(found.columns[name].equal(values) for name, values in whole.columns.items())
    assert (found.gradients, found.forwards) == (whole.gradients, whole.forwards)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_by_its_options(smoothed: SmoothedClassifier, data: Images, name: str) -> None:
    small = {"eps": EPS, "steps": 2, "samples": 2}
    chosen = options(name, {option: value for option, value in small.items() if option in OPTIONS[name]})
    for source in ("smoothed", "base"):
        attack = make(name, smoothed, source, chosen)
        found = attack_runs.run(attack, smoothed, data, INDICES, 10, 3)
        assert found.columns["l2"].max() > 0 or name == "cw"  # two steps are too few for one
        assert found.forwards > 0
        if "eps" in chosen:
            assert found.columns["linf"].max() <= EPS
        assert attack.law.sigma == ((0.2,) if source == "smoothed" else (0.0,))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_goes_on(smoothed: SmoothedClassifier, data: Images, name: str) -> None:
    """After the first of three batches, in sizes of its own."""
    small = {"steps": 2, "samples": 2}
    chosen = options(name, {option: value for option, value in small.items() if option in OPTIONS[name]})
    parts: list[Attacked] = []
    attack = make(name, smoothed, "smoothed", chosen)
    found = attack_runs.run(attack, smoothed, data, INDICES, 10, 2, keep=parts.append)
    assert [part.columns["indices"].tolist() for part in parts] == [[0, 2], [3, 5], [6]]
    for size in (2, 3):
        attack, computed = make(name, smoothed, "smoothed", chosen), list[Attacked]()
        again = attack_runs.run(attack, smoothed, data, INDICES, 10, size, done=parts[:1], keep=computed.append)
        assert sum(map(len, computed)) == 3
        assert all(again.columns[column].equal(values) for column, values in found.columns.items())
        assert (again.gradients, again.forwards) == (found.gradients, found.forwards)


def test_the_base_classifier_as_source_has_no_noise(smoothed: SmoothedClassifier, data: Images) -> None:
    chosen = options("fgsm", {"eps": EPS})
    on_base = make("fgsm", smoothed, "base", chosen)(data.images, data.labels)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in smoothed.normalize)
    pixels = (data.images.float() / 255).requires_grad_()
    nn.functional.cross_entropy(smoothed.base((pixels - mean) / std), data.labels, reduction="sum").backward()
    expected = (pixels + EPS * pixels.grad.sign()).clamp(0, 1).detach()
    assert on_base == pytest.approx(expected, abs=1e-6)
    assert not on_base.equal(make("fgsm", smoothed, "smoothed", chosen)(data.images, data.labels))


def test_targets(smoothed: SmoothedClassifier, data: Images) -> None:
    given = {"eps": 1.0, "alpha": 0.1, "steps": 8, "samples": 1}
    found = {}
    for targeted in ("none", "random", "least-likely"):
        attack = make("pgd", smoothed, "base", options("pgd", given | {"targeted": targeted}))
        assert attack.sign == (1 if targeted == "none" else -1)
        found[targeted] = attack_runs.run(attack, smoothed, data, INDICES, 10, 5).columns["adversarial"]
    assert not found["none"].equal(found["random"])
    assert not found["random"].equal(found["least-likely"])


def test_images_of_two_kinds(smoothed: SmoothedClassifier, data: Images) -> None:
    class Uneven(Images):
        def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
            image, label = super().__getitem__(index)
            return image[:, : 6 - index // 5], label

    with pytest.raises(
        ValueError, match=r"image 5 is torch.uint8 \(3, 5, 6\); the first one is torch.uint8 \(3, 6, 6\)"
    ):
        attacked(smoothed, Uneven(data.images, data.labels), 5)


# ---- sizes and runners -----------------------------------------------------------------------------------------------


def test_as_many_images_at_once_as_fill_micro_batches_or_memory() -> None:
    def passes(size: int, rows: int) -> Any:
        return SimpleNamespace(function=SimpleNamespace(shape=(3, size, size), micro_batch=rows), lanes=[None, None])

    rows = FULL * 2 * 8
    assert at_once(passes(32, 8), 1) == rows
    assert at_once(passes(32, 8), 8) == rows // 8
    assert at_once(passes(32, 8), rows + 1) == 1
    assert at_once(passes(32, 10**6), 1) == MEMORY // (12 * 32 * 32)
    assert at_once(passes(12_000, 1), 1) == 1


def test_runners_are_chosen_for_the_whole_run(smoothed: SmoothedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def candidates(network: object, passes: int, *_: object) -> list[str]:
        asked.append(passes)
        return ["eager"]

    monkeypatch.setattr("smoothfast.engine.function.candidates", candidates)
    smoothed.runner = "auto"
    attack = make("epgd", smoothed, "smoothed", options("epgd", {}))
    passes, engine = settle(attack, smoothed, torch.zeros(1, 3, 6, 6, dtype=torch.uint8), 1000, 100)
    assert asked == [1000 * 7 * 8 * 2, 2 * 1000 * 100]
    assert (attack.runner, smoothed.runner) == (passes.function.runner, engine.function.runner) == ("eager", "eager")
    assert engine.function.image_dtype == torch.float32
    attack(torch.zeros(2, 3, 6, 6), [0, 1])
    smoothed.votes(torch.zeros(2, 3, 6, 6), 10)
    assert len(asked) == 2


# ---- options ---------------------------------------------------------------------------------------------------------


def test_options_that_are_not_given_are_as_the_attack_has_them() -> None:
    assert options("fgsm", {"eps": None}) == {"eps": 8 / 255, "norm": "linf", "loss": "ce", "targeted": "none"}
    assert options("pgd", {"steps": 3, "samples": None})["steps"] == 3


def test_the_table_has_the_defaults_of_the_classes(smoothed: SmoothedClassifier) -> None:
    assert list(ATTACKS) == list(OPTIONS) == list(names.ATTACKS)
    for kind, taken in zip(ATTACKS.values(), OPTIONS.values(), strict=True):
        own = kind(smoothed)
        told = kind(smoothed, **{name: value for name, value in taken.items() if name != "targeted"})
        for name in taken.keys() - {"targeted"}:
            attribute = "queries" if name == "steps" and isinstance(own, Square) else name
            assert getattr(own, attribute) == getattr(told, attribute), (kind, name)


@pytest.mark.parametrize(
    ("name", "given", "part"),
    [
        ("magic", {}, "attack is 'magic'; it must be one of fgsm, pgd, epgd, smoothadv, multi-targeted"),
        ("fgsm", {"steps": 3}, "steps is 3; attack 'fgsm' takes none, as pgd, epgd, smoothadv, multi-targeted, ddn"),
        ("smoothadv", {"loss": "dlr"}, "loss is 'dlr'; attack 'smoothadv' takes none, as fgsm, pgd, epgd, "),
        ("multi-targeted", {"targeted": "random"}, "targeted is 'random'; attack 'multi-targeted' takes none"),
    ],
)
def test_options_that_an_attack_does_not_take(name: str, given: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        options(name, given)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_holds_columns_and_settings(smoothed: SmoothedClassifier, data: Images, tmp_path: Path) -> None:
    found = attacked(smoothed, data, 5)
    attack_files.save(found, {"eps": EPS, "attack": "epgd"}, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        about = json.loads(file.metadata()["run"])
        assert set(file.keys()) == set(found.columns)
        assert all(file.get_tensor(name).equal(values) for name, values in found.columns.items())
    assert about["settings"] == {"eps": EPS, "attack": "epgd"}
    assert (about["gradients"], about["forwards"]) == (30, 30)
    assert {"smoothfast", "torch", "kernels"} <= set(about["environment"])


def test_a_file_that_cannot_be_written(
    smoothed: SmoothedClassifier, data: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(attack_files, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*a.safetensors: No space left"):
        attack_files.save(attacked(smoothed, data, 5), {}, tmp_path / "a.safetensors")


def test_a_run_is_kept_in_parts(smoothed: SmoothedClassifier, data: Images, tmp_path: Path) -> None:
    out, settings = tmp_path / "a.safetensors", {"votes": 20, "eps": EPS, "sigma": (0.2,)}
    assert kept(out, settings, INDICES, *ALIKE) == []
    for begun in (INDICES[:3], INDICES[3:]):
        attack_files.keep(out, settings, attacked(smoothed, data, 5, begun))
    names = sorted(path.name for path in (tmp_path / "a.parts").iterdir())
    assert names == ["000000000000.safetensors", "000000000005.safetensors"]
    assert list(tmp_path.iterdir()) == [tmp_path / "a.parts"]
    with pytest.raises(FileExistsError, match=r"a\.parts exists: go on with it \(--resume\) or choose another --out"):
        check_out(out, resume=False)
    check_out(out, resume=True)
    (tmp_path / "a.parts/000000000006.partial.safetensors").write_text("half")
    parts, found = kept(out, settings, INDICES, *ALIKE), attacked(smoothed, data, 5)
    assert [len(part) for part in parts] == [3, 2]
    assert sum(part.gradients for part in parts) == found.gradients
    assert all(torch.cat([part.columns[name] for part in parts]).equal(found.columns[name]) for name in found.columns)

    attack_files.save(found, settings, out)
    assert [len(part) for part in kept(out, settings, INDICES, *ALIKE)] == [5]
    attack_files.discard_parts(out)
    assert list(tmp_path.iterdir()) == [out]
    attack_files.discard_parts(out)


@pytest.mark.parametrize("name", ["000000000003.safetensors", "notes.txt"])
def test_what_is_no_part_is_named(smoothed: SmoothedClassifier, data: Images, tmp_path: Path, name: str) -> None:
    out, settings = tmp_path / "a.safetensors", {"votes": 20, "eps": EPS}
    attack_files.keep(out, settings, attacked(smoothed, data, 5, [3]))
    path, whole = tmp_path / "a.parts" / name, (tmp_path / "a.parts/000000000003.safetensors").read_bytes()
    assert [len(part) for part in kept(out, settings, [3, 5], *ALIKE)] == [1]
    with pytest.raises(ValueError, match=r"3\.safetensors does not go on where the 0 images before it end"):
        kept(out, settings, INDICES, *ALIKE)  # images 0 and 2 are missing
    with pytest.raises(
        ValueError, match=r"made with other settings: eps was 0.06.*, is now 0.5; votes was 20, is now 9$"
    ):
        kept(out, {"votes": 9, "eps": 0.5}, [3, 5], *ALIKE)
    for content in (b"", whole[:7], whole[:100], whole[:-1], b"precious data"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is cut off, or no file of an attack \(.*\): remove it"):
            kept(out, settings, [3, 5], *ALIKE)
    for about in (None, {"by": "another"}, {"run": "no JSON"}, {"run": "3"}, {"run": '{"settings": {"eps": 1}}'}):
        save_file({"indices": torch.tensor([3])}, path, about)
        with pytest.raises(ValueError, match=rf"{name} is cut off, or no file of an attack \(.*\): remove it"):
            kept(out, settings, [3, 5], *ALIKE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradients": None}, "gradients is None"),
        ({"forwards": 10**400}, "it tells what no run does"),
        ({"environment": float("nan")}, "it tells what no run does"),
        ({"adversarial": torch.rand(1, 3, 6, 5)}, r"column adversarial is torch.float32 \(1, 3, 6, 5\)"),
        (
            {"adversarial": torch.full((1, 3, 6, 6), torch.nan)},
            "column adversarial has values that are negative or not",
        ),
        ({"smoothed_clean": torch.ones(1, 5, dtype=torch.int64)}, r"column smoothed_clean is torch.int64 \(1, 5\)"),
        ({"base_clean": torch.full((1, 4), -1)}, "column base_clean has values that are negative"),
        (
            {"l2": torch.tensor([torch.inf], dtype=torch.float64)},
            "column l2 has values that are negative or not finite",
        ),
    ],
)
def test_what_cannot_be_put_together_is_refused(
    smoothed: SmoothedClassifier, data: Images, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    out, settings = tmp_path / "a.safetensors", {"votes": 20}
    found = attacked(smoothed, data, 5, [3])
    ours = {name: value for name, value in change.items() if name not in found.columns}
    columns = found.columns | {name: value for name, value in change.items() if name not in ours}
    attack_files.save(replace(found, columns=columns, **ours), settings, out)
    with pytest.raises(ValueError, match=rf"a\.safetensors is cut off, or no file of an attack \({message}"):
        kept(out, settings, [3], *ALIKE)


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    path = tmp_path / "deep/er/a.txt"
    with whole(path) as partial:
        assert partial.exists()
        assert partial.suffix == ".txt"
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(IsADirectoryError), whole(path.parent):
        raise AssertionError("there is work to do")
    with pytest.raises(FileExistsError), whole(path / "below"):
        raise AssertionError("there is work to do")


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    check_out(tmp_path / "a.safetensors", resume=False)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(FileExistsError, match=r"a\.safetensors exists: go on with it \(--resume\) or choose another"):
        check_out(tmp_path / "a.safetensors", resume=False)
    with pytest.raises(ValueError, match=r"out is '.*a.pt'; it must end in .safetensors"):
        check_out(tmp_path / "a.pt", resume=True)
