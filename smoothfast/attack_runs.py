"""A data set through an attack into a safetensors file: what `smoothfast attack` does."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .analysis import markdown
from .attacks import CW, DDN, EPGD, FGSM, PGD, Attack, MultiTargetedPGD, NAttack, SmoothAdvPGD, Square
from .data import Labelled
from .engine import Engine
from .evaluation import LEVEL, ORDERS, accuracy, base_votes, distances, elected
from .logs import require_new
from .passes import Passes
from .runs import checked_alike, environment
from .smoothing import SmoothedClassifier, checked_images, pixels
from .specs import choice, same_settings


def _square(model: nn.Module, steps: int = 5000, **own: Any) -> Square:
    """Its queries are what steps are elsewhere."""
    return Square(model, queries=steps, **own)


CLIMB: Mapping[str, Any] = {"eps": 8 / 255, "alpha": None, "steps": 7, "samples": 8, "norm": "linf", "restarts": 1}
AWAY: Mapping[str, Any] = {"targeted": "none"}
ATTACKS: dict[str, tuple[Callable[..., Attack], Mapping[str, Any]]] = {
    "fgsm": (FGSM, {**AWAY, "eps": 8 / 255, "norm": "linf", "loss": "ce"}),
    "pgd": (PGD, {**CLIMB, **AWAY, "samples": 1, "loss": "ce"}),
    "epgd": (EPGD, {**CLIMB, **AWAY, "loss": "ce"}),
    "smoothadv": (SmoothAdvPGD, {**CLIMB, **AWAY}),
    "multi-targeted": (MultiTargetedPGD, {**CLIMB, "samples": 1}),
    "ddn": (DDN, {**AWAY, "steps": 100, "samples": 1}),
    "cw": (CW, {**AWAY, "steps": 1000, "samples": 1}),
    "nattack": (NAttack, {**AWAY, "eps": 8 / 255, "steps": 500, "samples": 1}),
    "square": (_square, {**AWAY, "eps": 8 / 255, "steps": 5000, "samples": 1}),
}
"""By name: what makes the attack, and the options it takes, with their values where they are not given."""

TARGETED: dict[str, Callable[[Attack], None]] = {
    "none": Attack.set_mode_default,
    "random": Attack.set_mode_targeted_random,
    "least-likely": Attack.set_mode_targeted_least_likely,
}
SOURCES = {"smoothed": None, "base": 0.0}  # what images are crafted on, by the sigma that the attack is told

FULL = 8  # micro-batches of each lane in a step: 4 take 3 % longer (ResNet-20, one thread), and a kill loses few images
MEMORY = 2**28  # bytes of float32 images handed over at once, at most; an attack keeps several tensors of that size


def options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an attack; those given that are None are as the attack has them.

    Raises:
        ValueError: there is no such attack, or it does not take one of those given.
    """
    choice("attack", name, ATTACKS)
    taken = ATTACKS[name][1]
    chosen = {option: value for option, value in given.items() if value is not None}
    for option, value in chosen.items():
        if option not in taken:
            others = ", ".join(other for other, (_, theirs) in ATTACKS.items() if option in theirs)
            raise ValueError(f"{option} is {value!r}; attack {name!r} takes none, as {others} do")
    return {**taken, **chosen}


def make(name: str, smoothed: SmoothedClassifier, source: str, options: Mapping[str, Any]) -> Attack:
    """An attack on a smoothed classifier, or on its base classifier without noise, with its seed, runner and rows per
    pass."""
    choice("source", source, SOURCES)
    own = {option: value for option, value in options.items() if option != "targeted"}
    targeted = options.get("targeted", "none")
    choice("targeted", targeted, TARGETED)
    attack = ATTACKS[name][0](
        smoothed, sigma=SOURCES[source], seed=smoothed.seed, max_batch=smoothed.max_batch, runner=smoothed.runner, **own
    )
    TARGETED[targeted](attack)
    return attack


@dataclass(frozen=True, eq=False)
class Attacked:
    """What became of images [N], and what it took.

    Attributes:
        columns: `adversarial` float32 [N, C, H, W] in [0, 1]; `labels` and `indices` in the data set, int64 [N]; votes
            by class, int64 [N, K]: `base_clean`, `base_adversarial` (one for each, without noise), `smoothed_clean`,
            `smoothed_adversarial` (fresh ones); `linf` and `l2` float64 [N], the distances.
        votes: samples of the smoothed classifier for each image.
        gradients, forwards: see `Attack`, over all images.
        environment: see `runs.environment`, where the run began.
    """

    columns: dict[str, Tensor]
    votes: int
    gradients: int
    forwards: int
    environment: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.columns["labels"])


def settle(
    attack: Attack, smoothed: SmoothedClassifier, image: Tensor, count: int, votes: int
) -> tuple[Passes, Engine]:
    """Fixes by what runners the attack and the votes on so many images like this one [1, C, H, W] are computed: chosen
    for all of the run, also where it comes in parts."""
    image = pixels(image)
    passes, engine = attack.passes(image, count), smoothed.engine(image, 2 * count * votes)
    attack.runner, smoothed.runner, attack.max_batch = passes.runner, engine.runner, passes.micro_batch
    return passes, engine


def at_once(passes: Passes, samples: int) -> int:
    """How many images to attack at once, with so many samples for each."""
    rows = FULL * len(passes.lanes) * passes.micro_batch
    return max(1, min(rows // samples, MEMORY // (4 * math.prod(passes.shape))))


def run(
    attack: Attack,
    smoothed: SmoothedClassifier,
    data: Labelled,
    indices: list[int],
    votes: int,
    size: int,
    progress: Callable[[Sequence[list[int]]], Iterable[list[int]]] = iter,
    done: Sequence[Attacked] = (),
    keep: Callable[[Attacked], None] = lambda part: None,
) -> Attacked:
    """Attacks the images `indices` of a data set, and has base and smoothed classifier judge them before and after.

    The index of an image is the id that all noise is drawn under, so nothing depends on which are attacked together.
    Clean images are judged as float images, by the same noise as the adversarial ones.

    Args:
        attack, smoothed: with runners that are settled.
        votes: fresh samples of the smoothed classifier for each image.
        size: images attacked at once.
        progress: wraps the batches for display.
        done: what became of the first images before.
        keep: takes what became of a batch, as soon as it is judged.
    """
    first = checked_images(data[indices[0]][0][None])[0]
    parts = list(done)
    left = indices[sum(map(len, parts)) :]
    for batch in progress([left[start : start + size] for start in range(0, len(left), size)]):
        images, labels = zip(*(data[index] for index in batch), strict=True)
        alike = [checked_alike(*pair, first.shape, first.dtype) for pair in zip(images, batch, strict=True)]
        clean = pixels(torch.stack(alike))
        adversarial = attack(clean, labels, batch).cpu()
        judged = {"clean": clean, "adversarial": adversarial}
        columns = (
            {"adversarial": adversarial, "labels": torch.tensor(labels), "indices": torch.tensor(batch)}
            | {f"base_{name}": base_votes(smoothed, of, smoothed.max_batch).cpu() for name, of in judged.items()}
            | {f"smoothed_{name}": smoothed.votes(of, votes, batch) for name, of in judged.items()}
            | {norm: distances(clean, adversarial, norm) for norm in ORDERS}
        )
        parts.append(Attacked(columns, votes, attack.gradients, attack.forwards, environment()))
        keep(parts[-1])
    return Attacked(
        {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns},
        votes,
        sum(part.gradients for part in parts),
        sum(part.forwards for part in parts),
        parts[0].environment,
    )


def save(attacked: Attacked, settings: Mapping[str, Any], path: Path) -> None:
    """Writes the columns, and as metadata `run`: JSON of the settings, the environment, gradients and forward passes.

    In one entry, since safetensors puts several in an order that depends on luck.
    """
    about = {
        "settings": settings,
        "environment": attacked.environment,
        "gradients": attacked.gradients,
        "forwards": attacked.forwards,
    }
    try:
        save_file(attacked.columns, path, {"run": json.dumps(about)})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def read(path: Path, settings: Mapping[str, Any]) -> Attacked:
    """What `save` wrote.

    Raises:
        ValueError: it was with other settings (names each), or the file is another's or cut off.
        OSError: the file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["run"])
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = about["settings"]
        attacked = Attacked(columns, found["votes"], about["gradients"], about["forwards"], about["environment"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is cut off, or no file of an attack ({error}): remove it, or choose another --out"
        ) from error
    same_settings(path, found, settings)
    return attacked


def parts_of(out: Path) -> Path:
    """The folder where each batch of a run is kept until all are done, as a file of its own."""
    return out.with_suffix(".parts")


def keep(out: Path, settings: Mapping[str, Any], part: Attacked) -> None:
    """Saves a batch; its file is there whole or not at all."""
    with whole(parts_of(out) / f"{part.columns['indices'][0]:012}.safetensors") as path:
        save(part, settings, path)


def kept(out: Path, settings: Mapping[str, Any], indices: list[int]) -> list[Attacked]:
    """What is there of a run on the images `indices`: its file, else its batches.

    Raises:
        ValueError: a file is not as `read` wants it, or not of the images that come next; names it.
        OSError: a file cannot be read.
    """
    folder = parts_of(out)
    paths = [out] if out.exists() else sorted(folder.iterdir()) if folder.exists() else []
    parts: list[Attacked] = []
    for path in paths:
        if ".partial" in path.suffixes:  # was being written when the run was killed
            continue
        part = read(path, settings)
        begun = sum(map(len, parts))
        if part.columns["indices"].tolist() != indices[begun : begun + len(part)]:
            raise ValueError(f"{path} does not go on where the {begun} images before it end: remove it")
        parts.append(part)
    return parts


def discard_parts(out: Path) -> None:
    """Of a run that is done."""
    folder = parts_of(out)
    if folder.exists():
        for path in folder.glob("*.safetensors"):
            path.unlink()
        folder.rmdir()


def tables(attacked: Attacked, name: str) -> str:
    """Accuracies, and what the attack took and how far it went, in markdown. An image is fooled where the smoothed
    classifier was right, and is no more."""
    columns = attacked.columns
    rows = [
        [row, *(str(accuracy(columns[f"{of}_{which}"], columns["labels"])) for which in ("clean", "adversarial"))]
        for of, row in {"base": "base, without noise", "smoothed": f"smoothed, {attacked.votes:,} votes"}.items()
    ]
    per_image = [f"{number / len(attacked):,.6g}" for number in (attacked.gradients, attacked.forwards)]
    moved = [f"{value:.4f}" for norm in ORDERS for value in (columns[norm].max(), columns[norm].mean())]
    was, became = (elected(columns[f"smoothed_{which}"]) == columns["labels"] for which in ("clean", "adversarial"))
    fooled = columns["l2"][was & ~became]
    moved.append(f"{fooled.mean():.4f}" if len(fooled) else "none")
    heads = [*(f"{of} {norm}" for norm in ORDERS for of in ("largest", "mean")), "mean l2 of images fooled"]
    judged = ["classifier", *(f"{which} accuracy ({LEVEL:.0%} interval)" for which in ("clean", "adversarial"))]
    took = ["attack", "gradients per image", "forward passes per image", *heads]
    return f"{markdown(judged, rows)}\n{markdown(took, [[name, *per_image, *moved]])}"


def check_out(path: Path, resume: bool) -> None:
    """Of the file of a run, before there is any work: neither it nor a part is there yet, or they are gone on with."""
    if path.suffix != ".safetensors":
        raise ValueError(f"out is {str(path)!r}; it must end in .safetensors")
    if not resume:
        require_new(path)
        require_new(parts_of(path))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file that is there whole or not at all: where to write what takes the place of `path` in the end.

    Its folder is made and the file opened at once: what cannot be written is known before the work.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial{path.suffix}")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors leaves it to its owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
