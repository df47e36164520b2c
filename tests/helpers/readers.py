"""Files of each kind that the package reads: who writes one, and all that is done with one by somebody else."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import typer
from helpers import tiny
from helpers.hostile import obeyed, png, refused_or_read
from helpers.toys import TOYS, WEIGHTS
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from smoothfast import data, models
from smoothfast.checks import fraction
from smoothfast.cli import display
from smoothfast.cli.attack import attack
from smoothfast.cli.certify import CertifyOptions, PredictOptions, certify
from smoothfast.cli.options import integers
from smoothfast.cli.prepare import prepare, tell_classes
from smoothfast.cli.replay import replay
from smoothfast.cli.report import AnalyzeOptions
from smoothfast.cli.sweep import SweepOptions
from smoothfast.cli.train import TrainOptions
from smoothfast.data.pictures import tensor_of
from smoothfast.pretrained import transformers_statistics
from smoothfast.runs import sweep_log, sweep_tables, tables
from smoothfast.runs.certify import TAKEN
from smoothfast.runs.logs import Row, RunLog, put_in_order, read_log
from smoothfast.runs.records import read_json, sidecar_of
from smoothfast.runs.sweep_log import SettingAccuracy, SweepLog, read
from smoothfast.specs import names_code
from smoothfast.weights import read_weights

SETTINGS = {"sigma": [0.25], "votes": 7, "normalize": None, "seed": 3}


def write_log(path: Path) -> None:
    with RunLog(path, SETTINGS, {"cpu": "any"}) as log:
        for idx in range(3):
            log.append(Row(idx, 1, idx % 2, 0.5, 0.25, 100, 90, 7, 3, 0.8, 0.2, "certified"))


def analyzed(path: Path) -> None:
    """What `analyze` does with a log, and a run that goes on with it and is found not to be sound."""
    logs = tables.named([read_log(path)])
    table = tables.summary(logs)
    for form in ("markdown", "latex", "csv", "json"):
        tables.render(table, form)  # type: ignore[arg-type]
    json.dumps(display.figures(table, logs), indent=2, allow_nan=False)
    seed, taken = PredictOptions(out=path, resume=True).settled(True)
    assert 0 <= seed < 2**64
    assert taken in TAKEN
    with RunLog(path, SETTINGS, resume=True) as log:
        put_in_order(path)
        log.retract()


def write_run(path: Path) -> None:
    """A log by the command itself, of two images."""
    (path.parent / "smoothfast_toys.py").write_text(TOYS)
    save_file(WEIGHTS, path.parent / "toy.safetensors")
    certify(out=path, n=20, n0=4, alpha=0.1, seed=3, limit=2, sigma=0.3, **of_toys(path.parent))


def of_toys(folder: Path) -> dict[str, Any]:
    """The options of a command that puts the toys through their classifier, and says nothing."""
    toys = folder / "smoothfast_toys.py"
    named = {"model": f"{toys}:model", "data": f"{toys}:images", "weights": folder / "toy.safetensors"}
    return named | {"quiet": True, "runner": "eager", "precision": "fp32", "batch": 16, "normalize": "none"}


def replayed(path: Path) -> None:
    """What `replay` does with a log, but where it would draw more than a few samples."""
    told = read_json(sidecar_of(path))
    settings = told.get("settings") if isinstance(told, dict) else None
    if isinstance(settings, dict) and any(is_long(settings.get(name)) for name in ("n", "n0", "micro_batch")):
        return
    named = {name: value for name, value in of_toys(path.parent).items() if name in ("model", "data", "weights")}
    with redirect_stdout(io.StringIO()) as said, suppress(typer.Exit):
        replay(log=path, quiet=True, **named)
    assert not obeyed(said.getvalue())


def is_long(number: Any) -> bool:
    return isinstance(number, int) and number > 1000


def write_sweep(path: Path) -> None:
    with SweepLog(path, SETTINGS) as log:
        log.append([SettingAccuracy("pgd", seed, 0.12, "soft", 4, 10, 40) for seed in (0, 1)])


def swept(path: Path) -> None:
    rows = read(path)
    sweep_tables.sweep_table(rows)
    with SweepLog(path, SETTINGS):
        sweep_log.put_in_order(path, [row.setting for row in rows[::-1]])


def toy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))


def write_weights(path: Path) -> None:
    about = {"num_classes": "3", "settings": json.dumps(SETTINGS)}
    (path.parent / "smoothfast_toys.py").write_text(TOYS)
    if path.suffix == ".safetensors":
        save_file(WEIGHTS, path, about)
    else:
        torch.save({"state_dict": WEIGHTS}, path)


def loaded(path: Path) -> None:
    weights = read_weights(path)
    try:
        weights.load_into(toy())
        given = of_toys(path.parent) | {"weights": path, "normalize": None}
        prepared = prepare(CertifyOptions(out=Path("new.tsv"), **given), 0.25, 0)
        prepared.smoothed.engine(prepared.first, 10)
    except ValueError as error:  # of what they are, which the command line says beside their name
        raise ValueError(f"{path}: {error}") from error


def write_attack(path: Path) -> None:
    write_weights(path.parent / "toy.safetensors")
    attacked(path)


def attacked(path: Path) -> None:
    """What `attack` does with what is there of a run: all of it, or its first image."""
    with redirect_stdout(io.StringIO()):
        for as_json in (True, False):
            attack(
                attack="pgd", steps=1, eps="0.1", votes=7, limit=2, out=path, resume=True, as_json=as_json,
                **of_toys(path.parent),
            )  # fmt: skip


HALF = replace(tiny.SETTINGS, validation=22, select="worst-clean", epochs=1 + 1 / 3)  # one step is left after an epoch


def write_checkpoint(path: Path) -> None:
    def once(steps: range) -> range:
        if steps.start:
            raise InterruptedError
        return steps

    with suppress(InterruptedError):
        tiny.trainer(path.parent, HALF).fit(once)


def restored(path: Path) -> None:
    with suppress(FloatingPointError):  # a run that diverges says so
        tiny.trainer(path.parent, HALF).fit(resume=True)


def write_picture(path: Path) -> None:
    pixels = tiny.pixels(0, 9, 7, 3).numpy()
    Image.fromarray(pixels).save(path)


def seen(path: Path) -> None:
    assert data.picture(str(path)).mode == "RGB"
    with suppress(ValueError):
        data.Fit(6, 5)(tensor_of(data.picture(str(path))))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("ape/0.png", "bee/0.png"):
            file.writestr(name, png(3, 4))


def unpacked(path: Path) -> None:
    for sides in (None, None), (3, 2):
        source = data.load(f"folder:{path}", "test", *sides)
        data.require_readable(source, range(len(source)))
        tell_classes(source, 3)


def write_processor(path: Path) -> None:
    path.write_text(json.dumps({"do_rescale": True, "rescale_factor": 1 / 255, "image_mean": [0.5], "image_std": [1]}))


def processed(path: Path) -> None:
    transformers_statistics(str(path.parent))


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "run.tsv": (write_log, analyzed),
    "run.tsv.json": (lambda path: write_log(path.with_suffix("")), lambda path: analyzed(path.with_suffix(""))),
    "replayed.tsv": (write_run, replayed),
    "replayed.tsv.json": (lambda path: write_run(path.with_suffix("")), lambda path: replayed(path.with_suffix(""))),
    "rows.csv": (write_sweep, swept),
    "rows.csv.json": (lambda path: write_sweep(path.with_suffix("")), lambda path: swept(path.with_suffix(""))),
    "net.safetensors": (write_weights, loaded),
    "net.pt": (write_weights, loaded),
    "adv.safetensors": (write_attack, attacked),
    "checkpoint.pt": (write_checkpoint, restored),
    "images.zip": (write_zip, unpacked),
    "preprocessor_config.json": (write_processor, processed),
    **{f"image.{kind}": (write_picture, seen) for kind in ("png", "jpg", "bmp", "tif", "webp", "ppm")},
}


MODES = {
    "png": ("1", "L", "LA", "P", "RGBA", "I;16"), "tif": ("1", "L", "P", "CMYK", "F", "I;16", "LAB"),
    "jpg": ("L", "CMYK"), "bmp": ("1", "P"), "webp": ("RGBA",), "ppm": ("1", "L", "I;16"),
}  # fmt: skip


def others(path: Path) -> list[bytes]:
    """Other files of the same kind: pictures in other modes, weights as torch wrote them before 1.6."""
    made = io.BytesIO()
    if path.name == "net.pt":
        torch.save({"state_dict": WEIGHTS}, made, _use_new_zipfile_serialization=False)
        return [made.getvalue()]
    found = []
    for mode in MODES[path.suffix[1:]] if path.stem == "image" else ():
        grey = Image.fromarray(tiny.pixels(0, 9, 7).numpy())
        grey.convert(mode).save(path)
        found.append(path.read_bytes())
    return found


# ---- texts -----------------------------------------------------------------------------------------------------------


def spelt(words: bytes) -> None:
    """What commands do with a word of theirs, `option value`, before they run; no code is imported that it names."""
    name, _, value = words.decode(errors="surrogateescape").partition(" ")
    if name in BY_OPTION:
        refused_or_read(lambda: BY_OPTION[name](name, value), name, "File name too long")


def of_model(name: str, value: str) -> None:
    CertifyOptions(out=Path("new"), model=value).check()
    if not names_code(value) and not value.startswith(("torchvision:", "timm:")):
        models.load(value, 3)


BY_OPTION: dict[str, Callable[[str, str], Any]] = {
    "model": of_model,
    "data": lambda _, value: CertifyOptions(out=Path("new"), data=value).check(),
    "normalize": lambda _, value: CertifyOptions(out=Path("new"), normalize=value).check(),
    "radii": lambda _, value: AnalyzeOptions(logs=[], radii=value).check(),
    "rows": integers,
    "milestones": lambda _, value: TrainOptions(data="demo", out=Path("new"), milestones=value).check(),
    **dict.fromkeys(("eps", "alpha"), fraction),
    **dict.fromkeys(
        ("sigmas", "samples", "voting"),
        lambda name, value: SweepOptions(out=Path("new"), **{name: value}).check(),
    ),
}


def named(names: bytes) -> None:
    """A folder with a picture under each of these names, `class/picture`."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        for name in names.split(b"\n")[:20]:
            parts = [part[:200] for part in name.replace(b"\0", b"").split(b"/")[:5] if part not in (b"", b".", b"..")]
            with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                picture = Path(made, *map(os.fsdecode, parts))
                picture.parent.mkdir(parents=True, exist_ok=True)
                picture.write_bytes(png(3, 4))
        with redirect_stderr(io.StringIO()) as said:
            refused_or_read(lambda: unpacked(Path(made)), made)
    assert not obeyed(said.getvalue()), said.getvalue()


TEXTS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "specs": (
        spelt,
        [
            b"model resnet20+pni", b"model torchvision:resnet18", b"model hf:folder", b"model onnx:net.onnx",
            b"model package.module:name", b"model file.py:name", b"data folder:/dev/shm", b"data cifar10:.",
            b"data imagenet:.", b"data package.module:name", b"normalize cifar10", b"normalize 0.5,0.5,0.5/0.2,0.2,0.2",
            b"eps 8/255", b"alpha 1e-3", b"sigmas 0,0.06,0.12", b"samples 1,4,16", b"voting majority,soft",
            b"milestones 1,2.5", b"radii 0,0.25,0.5", b"rows 0,5,7",
        ],
    ),
    "folders": (named, [b"ape/0.png\nbee/1.jpg", b"train/ape/0.png\ntest/ape/1.png", "é/\u202e.png".encode()]),
}  # fmt: skip
