"""Options of commands: dataclasses, of which typer is told, and those that several commands share.

A class of options says what a command takes, and `check` whether the values go together. All of it works without torch,
so that help, completion and every error of usage are there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from .. import launch, names
from ..checks import at_least, at_most, choice, fraction, noise_level, seed_in_range
from ..files import require_present
from ..normalization import STATISTICS, Normalization, statistics_of
from ..specs import (
    DATA_SPECS,
    MODEL_SPECS,
    comes_without_weights,
    draws_no_noise,
    names_code,
    require_data,
    require_model,
    require_sides,
)
from . import display

# More is a mistake, or the wish of who wrote a file: it would take gigabytes before anything is known to be wrong.
MOST_CLASSES = 100_000  # ImageNet-21k has 21,841
MOST_PROCESSES = 1024
MOST_ROWS = 65_536  # of a pass; of CIFAR-10 they take 400 MB in bf16
NORMALIZATIONS = ("none", *STATISTICS)
INTERRUPTED = 130  # the exit status, as of a shell
ON, BY, TOLD = "Model and images", "How it is computed", "What is told"  # panels of the help


def one_of(accepted: Iterable[str]) -> str:
    """Lists names for a help text."""
    return f"One of {', '.join(accepted)}."


def named(flag: str, accepted: Iterable[str], text: str = "{}", panel: str | None = None) -> Any:
    """Makes an option that takes one of a few names, which its help lists, where it has {}, and the shell completes."""
    every = tuple(accepted)
    return typer.Option(flag, help=text.format(one_of(every)), rich_help_panel=panel, autocompletion=completing(every))


def completing(accepted: Iterable[str]) -> Callable[[str], list[str]]:
    """Makes what the shell asks for the names that begin as what is typed."""

    def starting(incomplete: str) -> list[str]:
        return [name for name in accepted if name.startswith(incomplete)]

    return starting


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Options:
    """Options that every command has."""

    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.", rich_help_panel=TOLD)] = False

    def check(self) -> None:
        """Raises ValueError or OSError where values are out of their range or do not go together."""

    def kept(self) -> str:
        """Says what an interrupt leaves of the work, and how to go on."""
        return "nothing is kept"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ModelOptions(Options):
    """Options of commands that have a base classifier: which, and on what device."""

    model: Annotated[str, typer.Option("--model", help=f"Base classifier: {MODEL_SPECS}.", rich_help_panel=ON)] = (
        "resnet20"
    )
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="safetensors or torch file; embedded if not given.", rich_help_panel=ON),
    ] = None
    classes: Annotated[
        int | None,
        typer.Option("--classes", help="Number of classes, if nothing else tells it.", rich_help_panel=ON),
    ] = None
    normalize: Annotated[
        str | None,
        named(
            "--normalize",
            NORMALIZATIONS,
            "{} Or numbers, 0.5,0.5,0.5/0.2,0.2,0.2. After the noise; as in training if the weights tell, else none.",
            ON,
        ),
    ] = None
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …", rich_help_panel=BY)] = "cpu"

    def check(self) -> None:
        super().check()
        require_model(self.model)
        if not names_code(self.model):  # of which it is said first whether it is there
            require_present(self.weights)
        at_least(2, classes=self.classes)
        at_most(MOST_CLASSES, classes=self.classes)
        if self.normalize is not None:
            statistics_of(self.normalize)

    @property
    def statistics(self) -> Normalization | None:
        """The mean and deviation per channel that `normalize` names or writes out."""
        return statistics_of(self.normalize or "none")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SizeOptions(Options):
    """Options of commands that bring images to one size."""

    resize: Annotated[
        int | None,
        typer.Option("--resize", help="Length that the shorter side of images gets, antialiased.", rich_help_panel=ON),
    ] = None
    crop: Annotated[
        int | None, typer.Option("--crop", help="Side of the square in the middle that is kept.", rich_help_panel=ON)
    ] = None

    def check(self) -> None:
        super().check()
        require_sides(self.resize, self.crop)

    @property
    def sides(self) -> dict[str, int]:
        """The sides that are given, by name: settings of a run."""
        given = {"resize": self.resize, "crop": self.crop}
        return {name: side for name, side in given.items() if side is not None}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SmoothedOptions(ModelOptions, SizeOptions):
    """Options of commands that put images through a smoothed classifier."""

    data: Annotated[str, typer.Option("--data", help=f"{DATA_SPECS}.", rich_help_panel=ON)] = "demo"
    skip: Annotated[int, typer.Option("--skip", help="Take every skip-th image.", rich_help_panel=ON)] = 1
    limit: Annotated[
        int | None, typer.Option("--max", help="Take at most this many images, evenly from all.", rich_help_panel=ON)
    ] = None
    runner: Annotated[str, named("--runner", names.RUNNERS, "{} auto: what takes least for this run.", BY)] = "auto"
    precision: Annotated[str, named("--precision", names.PRECISIONS, "{} auto is bf16 where hardware has it.", BY)] = (
        "auto"
    )
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="Rows per forward pass; by image size if not given.", rich_help_panel=BY),
    ] = None

    def check(self) -> None:
        super().check()
        if self.weights is None and comes_without_weights(self.model) and self.model != "resnet20":
            raise ValueError(f"weights is not given; the embedded weights are of resnet20, and model is {self.model}")
        require_data(self.data)
        at_least(1, skip=self.skip, max=self.limit, batch=self.batch)
        at_most(MOST_ROWS, batch=self.batch)
        choice("runner", self.runner, names.RUNNERS)
        choice("precision", self.precision, names.PRECISIONS)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SeedOptions(Options):
    """Options of commands whose noise is the same each time, unless told otherwise."""

    seed: Annotated[int, typer.Option("--seed", help="Of all noise.", rich_help_panel=BY)] = 0

    def check(self) -> None:
        super().check()
        seed_in_range(self.seed)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NoiseOptions(SmoothedOptions):
    """Options of commands with one noise on images."""

    sigma: Annotated[
        float,
        typer.Option("--sigma", help="Standard deviation of the noise, in [0, 1] pixel units.", rich_help_panel=ON),
    ] = 0.25

    def check(self) -> None:
        super().check()
        if self.sigma or draws_no_noise(self.model):
            noise_level(sigma=self.sigma)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StepOptions(Options):
    """Options of the steps of an attack. Those that are not given are as the attack has them."""

    eps: Annotated[
        str | None, typer.Option("--eps", help="Radius of the ball in [0, 1] pixel units, as 0.03 or 8/255.")
    ] = None
    alpha: Annotated[
        str | None, typer.Option("--alpha", help="Length of a step of the attack, likewise; eps/4 if not given.")
    ] = None
    steps: Annotated[int | None, typer.Option("--steps", help="Of the attack.")] = None

    @property
    def lengths(self) -> dict[str, float | None]:
        """The numbers that `eps` and `alpha` stand for."""
        return {
            name: None if text is None else fraction(name, text)
            for name, text in (("eps", self.eps), ("alpha", self.alpha))
        }


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class JsonOptions(Options):
    """Options of commands that programs read."""

    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, for programs.", rich_help_panel=TOLD)
    ] = False


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ProcessOptions(Options):
    """Options of commands that share out their work over processes."""

    processes: Annotated[
        int,
        typer.Option(launch.PROCESSES, help="How many, on this machine, share the work.", rich_help_panel=BY),
    ] = 1

    def check(self) -> None:
        super().check()
        at_least(1, processes=self.processes)
        at_most(MOST_PROCESSES, processes=self.processes)
        launch.require_none(self.processes)


Chosen = TypeVar("Chosen", bound=Options)


def command(kind: type[Chosen]) -> Callable[[Callable[[Chosen], None]], Callable[..., None]]:
    """Turns a function of options into what typer takes: a function with a parameter for each of them.

    The options are checked before it runs. What the command computes with is to be imported within the function.
    """
    hints = get_type_hints(kind, include_extras=True)
    told = {field.name for field in fields(JsonOptions)}
    in_order = sorted(fields(kind), key=lambda field: (field.name in told, field.default is not MISSING))
    parameters = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in in_order
    ]

    def of(act: Callable[[Chosen], None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            options = kind(**given)
            options.check()
            if isinstance(options, ProcessOptions) and options.processes > 1:
                return launch.in_processes(options.processes)
            try:
                with display.voice(options.quiet):
                    act(options)
            except KeyboardInterrupt:
                launch.once(lambda: display.say_last(f"interrupted; {options.kept()}"))
                raise typer.Exit(INTERRUPTED) from None

        run.__name__, run.__doc__, run.__module__ = act.__name__, act.__doc__, act.__module__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return run

    return of


def numbers(argument: str, text: str | None) -> tuple[float, ...] | None:
    """Reads numbers that are separated by commas."""
    try:
        return None if text is None else tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{argument} is {text!r}; it must be numbers separated by commas") from None


def integers(argument: str, text: str) -> list[int]:
    """Reads integers that are separated by commas."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{argument} is {text!r}; it must be integers separated by commas") from None
