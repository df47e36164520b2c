"""`smoothfast replay`: rows of a log computed anew on this machine, and whether they are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checks import at_least
from ..failures import at_work
from ..files import require_present
from ..normalization import text_of
from ..specs import DEMO_INTEGERS, names_code
from . import display, progress
from .certify import CertifyOptions, LogOptions, PredictOptions
from .options import BY, ON, JsonOptions, command, integers

if TYPE_CHECKING:
    from ..runs.logs import Log
    from ..runs.replays import Difference

SHOWN = 20  # differences, at most
COMMANDS: dict[str, tuple[type[LogOptions], tuple[str, ...]]] = {
    "certify": (CertifyOptions, ("n0", "n", "alpha", "method", "radius", "tolerance", "bound", "labels_known")),
    "predict": (PredictOptions, ("n", "alpha", "method")),
    "demo": (CertifyOptions, ("n0", "n", "alpha", "bound")),
}
"""The options of the command that wrote a log, and which of its settings they take."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReplayOptions(JsonOptions):
    """Options of `replay`."""

    log: Annotated[Path, typer.Argument(help="A log of certify, predict or demo, with its .json beside it.")]
    rows: Annotated[str | None, typer.Option("--rows", help="Only these images, as 0,5,7.")] = None
    limit: Annotated[int | None, typer.Option("--max", help="At most this many images.")] = None
    model: Annotated[
        str | None, typer.Option("--model", help="As then; needed for package.module:callable.", rich_help_panel=ON)
    ] = None
    weights: Annotated[
        Path | None, typer.Option("--weights", help="As then; embedded if not given.", rich_help_panel=ON)
    ] = None
    classes: Annotated[int | None, typer.Option("--classes", help="As then.", rich_help_panel=ON)] = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="As then; needed where it has moved, and for package.module:callable.", rich_help_panel=ON
        ),
    ] = None
    device: Annotated[str | None, typer.Option("--device", help="As then if not given.", rich_help_panel=BY)] = None

    def check(self) -> None:
        require_present(self.log)
        require_present(self.weights)
        at_least(1, max=self.limit)
        if self.rows is not None:
            integers("rows", self.rows)


@command(ReplayOptions)
def replay(options: ReplayOptions) -> None:
    """Compute rows of a log anew, say what differs and what may be why. Exit status 1 where anything does."""
    from ..runs.logs import read_log
    from ..runs.records import sidecar_of

    log = read_log(options.log)
    if log.settings is None:
        raise ValueError(f"{sidecar_of(options.log)} with the settings of the run is missing")
    settings = log.settings
    if settings.get("command") not in list(COMMANDS):  # it may be of any type
        raise ValueError(
            f"{options.log} is by command {settings.get('command')!r:.50}; it must be by one of {', '.join(COMMANDS)}"
        )
    made, facts = _replayed(options, log, _as_then(options, settings))
    different = [difference for _, found in made for difference in found]
    facts |= {"rows": len(made), "same": sum(not found for _, found in made)}
    if options.as_json:
        display.print_json(facts | {"differences": [difference._asdict() for difference in different]})
    else:
        display.show(_told(facts, different))
    if different:
        raise typer.Exit(1)


def _as_then(options: ReplayOptions, settings: dict[str, Any]) -> LogOptions:
    """The options of the command that wrote the log.

    Raises:
        ValueError: a setting is missing, malformed or out of its range, or names code that the command line does not.
    """
    try:
        with _naming(options.log):
            return _options(options, settings)
    except (KeyError, TypeError, IndexError, AttributeError) as error:  # somebody else may have written it
        raise ValueError(f"{options.log}.json: its settings are not those of a log ({error!r})") from error


@contextmanager
def _naming(log: Path) -> Iterator[None]:
    """Stands around what is made of the settings of a log, and names it where that fails."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{log} cannot be replayed: {error}") from error


def _options(options: ReplayOptions, settings: dict[str, Any]) -> LogOptions:
    kind, names = COMMANDS[settings["command"]]
    given: dict[str, Any] = {
        "model": options.model or _plain("model", settings.get("model", "resnet20")),
        "data": options.data or _plain("data", settings.get("data", "demo")),
        "weights": options.weights or _embedded(settings), "classes": options.classes,
        "device": options.device or _text("device", settings.get("device", "cpu")), "resize": settings.get("resize"),
        "crop": settings.get("crop"),
    }  # fmt: skip
    kept = {name: settings[name] for name in (*names, "runner", "precision", "seed")}
    if kept.get("method") == "grid":
        kept |= {"radii": ",".join(map(repr, settings["radii"])), "beta": settings["beta"]}
    if kept["precision"] == "int8":  # whose bits are the same by any runner that takes it
        kept["runner"] = "auto"
    chosen = kind(
        out=options.log, resume=True, sigma=settings["sigma"][0], noise=settings["law"], batch=settings["micro_batch"],
        normalize=text_of(settings.get("normalize")), **given, **kept,
    )  # fmt: skip
    chosen.check()
    return chosen


def _embedded(settings: dict[str, Any]) -> Path | None:
    """The weights that `demo` takes, in integers since 0.2; None: those of `certify`."""
    return DEMO_INTEGERS if (settings["command"], settings["precision"]) == ("demo", "int8") else None


def _text(argument: str, value: Any) -> str:
    """A text from a file."""
    if not isinstance(value, str):
        raise ValueError(f"{argument} is {value!r:.50} in the log; it must be a text")
    return value


def _plain(argument: str, spec: Any) -> str:
    """A text from a file, which must not make anything be imported."""
    text = _text(argument, spec)
    if names_code(text):
        also = " and its --weights" if argument == "model" else ""
        said = f"{argument} is {spec!r} in the log, which names code"
        raise ValueError(f"{said}: pass --{argument}{also} if you trust it")
    return text


def _replayed(
    options: ReplayOptions, log: Log, then: LogOptions
) -> tuple[list[tuple[int, list[Difference]]], dict[str, Any]]:
    """The rows computed anew, image by image, and what may be why they differ."""
    from ..environment import environment
    from ..runs.certify import rows
    from ..runs.logs import environment_of
    from ..runs.replays import differences, indices_of
    from ..runs.shards import Whole
    from ..smoothing.replays import reasons
    from .prepare import prepare

    assert log.settings is not None
    assert then.seed is not None
    chosen = None if options.rows is None else integers("rows", options.rows)
    indices = indices_of(log, chosen)[: options.limit]
    with _naming(options.log):
        prepared = prepare(then, then.sigma, then.seed, then.noise)
        engine = prepared.smoothed.engine(prepared.first, 0)
    held, here = log.settings.get("weights"), prepared.about["weights"]
    if options.weights is None and held and held != here:
        others = f"these are {here:.12}…" if here else "here are none"
        raise ValueError(f"{options.log} is of the weights {held!s:.12}…, and {others}: pass --weights")
    if indices and max(indices) >= len(prepared.source):
        raise ValueError(
            f"{options.log} has image {max(indices)}; data is {then.data!r}, which has {len(prepared.source)} images"
        )
    found = rows(engine, prepared.source, indices, then.procedure, Whole())
    with at_work():
        made = list(progress.over(differences(log, found), "images", len(indices)))
    now = engine.meta | prepared.about
    why = reasons((log.settings, now), (environment_of(options.log), environment()))
    return made, {"log": str(options.log), "reasons": why}


def _told(facts: dict[str, Any], different: list[Difference]) -> str:
    """The outcome in words."""
    lines = [f"{facts['log']}: {facts['rows']} rows computed anew, {facts['same']} of them the same"]
    lines += [f"image {idx}: {column} was {kept}, is {now}" for idx, column, kept, now in different[:SHOWN]]
    if len(different) > SHOWN:
        lines.append(f"and {len(different) - SHOWN} more")
    if different and not facts["reasons"]:
        lines.append("nothing is known that may be why: images or code are others, or the log was edited")
    return "\n".join([*lines, *(f"what may be why: {reason}" for reason in facts["reasons"] if different)])
