"""`smoothfast certify`, `predict` and `demo`: images through a smoothed classifier into a log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import launch, names
from ..checks import at_least, at_most, choice, seed_in_range
from ..files import require_new, require_no_folder
from ..specs import DEMO_INTEGERS
from ..streams import MAX_SAMPLE_ID, drawn_seed
from ..text import counted
from . import display, progress
from .display import console
from .options import BY, JsonOptions, NoiseOptions, Options, ProcessOptions, command, named, numbers

if TYPE_CHECKING:
    from ..engine import Engine
    from ..procedures import Procedure

DEMO_SIGMA = 0.25  # of the noise that the embedded weights were trained under
DEMO_SECONDS = 120.0  # sampling time that `demo` chooses n for; with imports and compilation it stays under 3 minutes
DEMO_PASSES = 500_000  # about what that time is enough for: n is not known before the runner is
DEMO_N0 = 100  # samples that select a class
DEMO_SAMPLES = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LogOptions(NoiseOptions, JsonOptions, ProcessOptions, ABC):
    """Options of commands that write a log."""

    out: Annotated[Path, typer.Option("--out", help="The log to write.")]
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run if there is one.")] = False
    alpha: Annotated[float, typer.Option("--alpha", help="Error level per image.")] = 0.001
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Of all noise; drawn for the run if not given, and kept in its settings.", rich_help_panel=BY
        ),
    ] = None
    noise: Annotated[str | None, named("--noise", names.NOISES, "{} By the images if not given.")] = None
    shard: Annotated[str, named("--shard", names.SHARDS, "{} What several processes share out.")] = "images"

    def check(self) -> None:
        at_most(MAX_SAMPLE_ID, **{name: value for name, value in self.settings().items() if name in ("n0", "n")})
        self.procedure(0, 0.0)  # checks its arguments
        super().check()
        if self.noise is not None:
            choice("noise", self.noise, names.NOISES)
        choice("shard", self.shard, names.SHARDS)
        if self.seed is not None:
            seed_in_range(self.seed)
        require_no_folder(self.out)
        if not self.resume and not launch.launched():  # torchrun may start a run again, which then goes on
            require_new(self.out)

    def kept(self) -> str:
        from ..runs.records import count  # without torch, whose import may be what was interrupted

        return f"{self.out} keeps {counted(count(self.out), 'image')}: go on with --resume"

    @abstractmethod
    def procedure(self, label: int, deviation: float) -> Procedure:
        """Makes the procedure of an image, from its label and the deviation of the noise (`noise.Law`)."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings of the procedure, for the log."""

    def settled(self, resume: bool) -> tuple[int, str]:
        """The seed: as given, or that of the run to go on with, or drawn; and how images are taken."""
        from ..runs.certify import taken_by
        from ..runs.logs import begun, settings_of

        kept = settings_of(self.out) if resume and begun(self.out) else None
        seed = (kept or {}).get("seed") if self.seed is None else self.seed
        if not isinstance(seed, int) or not 0 <= seed < 2**64:  # that of a log is refused with it
            seed = drawn_seed()
        return seed, taken_by(kept)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CertifyOptions(LogOptions):
    """Options of `certify`."""

    n0: Annotated[int, typer.Option("--n0", help="Samples that select the class.")] = 100
    n: Annotated[int, typer.Option("--n", help="Samples that bound its probability.")] = 100_000
    method: Annotated[str, named("--method", names.CERTIFY_METHODS, "{} All but fixed stop early.")] = "fixed"
    radius: Annotated[
        float | None,
        typer.Option("--radius", help="For sequential: is it certified at this radius, in [0, 1] pixel units?"),
    ] = None
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="For tolerance: how far below the radius of n samples, in units of sigma."),
    ] = None
    radii: Annotated[
        str | None, typer.Option("--radii", help="For grid: which is the largest certified? As 0,0.25,0.5,0.75.")
    ] = None
    beta: Annotated[
        float | None,
        typer.Option("--beta", help="For grid: level at which it gives radii up, 0.05 if not given."),
    ] = None
    bound: Annotated[str, named("--bound", names.BOUNDS)] = "multiclass"
    labels_known: Annotated[
        bool, typer.Option("--labels-known", help="Certify the label of the data; no samples select a class.")
    ] = False

    def procedure(self, label: int, deviation: float) -> Procedure:
        from ..procedures import certify_procedure

        return certify_procedure(
            self.method, self.n0, self.n, self.alpha, self.sigma, self.bound, radius=self.radius,
            tolerance=self.tolerance, radii=numbers("radii", self.radii), beta=self.beta,
            label=label if self.labels_known else None, deviation=deviation,
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        return {
            "command": "certify", "n0": self.n0, "n": self.n, "alpha": self.alpha, "method": self.method,
            "radius": self.radius, "tolerance": self.tolerance, "bound": self.bound,
            "labels_known": self.labels_known,
        } | self.grid  # fmt: skip

    @property
    def grid(self) -> dict[str, Any]:
        """The settings of a grid, which no log of another method has."""
        from ..procedures import FUTILITY

        radii = numbers("radii", self.radii)
        return {} if radii is None else {"radii": list(radii), "beta": FUTILITY if self.beta is None else self.beta}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PredictOptions(LogOptions):
    """Options of `predict`."""

    n: Annotated[int, typer.Option("--n", help="Samples per image.")] = 1000
    method: Annotated[str, named("--method", names.PREDICT_METHODS, "{} sequential stops early.")] = "fixed"

    def procedure(self, label: int, deviation: float) -> Procedure:
        from ..procedures import predict_procedure

        return predict_procedure(self.method, self.n, self.alpha)

    def settings(self) -> dict[str, Any]:
        return {"command": "predict", "n": self.n, "alpha": self.alpha, "method": self.method}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DemoOptions(Options):
    """Options of `demo`."""

    out: Annotated[Path, typer.Option("--out", help="Folder for the log and the picture.")] = Path("smoothfast-demo")
    n: Annotated[
        int | None, typer.Option("--n", help="Samples per image; as many as three minutes allow if not given.")
    ] = None
    limit: Annotated[int, typer.Option("--max", help="Take at most this many of the 200 images.")] = 200
    runner: Annotated[str, named("--runner", names.RUNNERS, "{} auto: what takes least for this run.")] = "auto"

    def check(self) -> None:
        at_least(1, max=self.limit)
        choice("runner", self.runner, names.RUNNERS)
        if self.n is not None:
            self.certificates(self.n).check()

    def certificates(self, n: int, weights: Path | None = None) -> CertifyOptions:
        """The options of `certify` that make the log of the demonstration."""
        log = self.out / "certify.tsv"
        return CertifyOptions(
            out=log, n=n, sigma=DEMO_SIGMA, seed=0, runner=self.runner, limit=self.limit, classes=10, resume=True,
            weights=weights,
        )  # fmt: skip


@command(CertifyOptions)
def certify(options: CertifyOptions) -> None:
    """Certify images: a class and an L2 radius for each, and the table of certified accuracy."""
    _run(options)


@command(PredictOptions)
def predict(options: PredictOptions) -> None:
    """Predict images with the smoothed classifier, abstaining where the votes do not decide."""
    _run(options)


@command(DemoOptions)
def demo(options: DemoOptions) -> None:
    """Certify the embedded images with the embedded model: a table, a log and a picture. In integers, whose log is the
    same on every processor, where there are vector instructions for these."""
    from ..data import demo as embedded_images
    from ..runners.fused import preferred
    from ..runs.certify import log_run
    from ..runs.records import discard
    from .prepare import Ahead, described, prepare, seconds_per_sample

    weights = DEMO_INTEGERS if preferred("int8")[:1] not in ([], ["int8_scalar"]) else None
    prepared = prepare(options.certificates(DEMO_SAMPLES[0], weights), DEMO_SIGMA, seed=0)
    smoothed, indices = prepared.smoothed, prepared.indices
    kind = "ResNet-20 in integers" if weights else "ResNet-20"
    display.tell(f"{kind}, trained under noise sigma 0.25 on CIFAR-10 (JPEG), {len(indices)} test images")
    n = options.n
    with console().status("preparing the base classifier"):
        engine = smoothed.engine(prepared.first, DEMO_PASSES if n is None else len(indices) * (n + DEMO_N0))
    if n is None:
        speed = seconds_per_sample(engine, embedded_images().images)
        n = max(m for m in DEMO_SAMPLES if m == DEMO_SAMPLES[0] or speed * len(indices) * (m + DEMO_N0) < DEMO_SECONDS)
        display.tell(
            f"{speed * 1e6:.0f} microseconds per noisy copy here, so n = {n:,} samples per image (--n changes it)"
        )
    display.tell(described(smoothed, engine, Ahead(len(indices), n + DEMO_N0)), soft_wrap=True)
    chosen = options.certificates(n, weights)
    discard(chosen.out)
    settings = {
        "command": "demo",
        "n0": DEMO_N0,
        "n": n,
        "alpha": 0.001,
        "bound": "multiclass",
        "sigma": [0.25],
        "seed": 0,
    }
    log_run(
        engine, prepared.source, indices, chosen.procedure, settings, chosen.out, progress=progress.rows
    )  # fmt: skip
    display.show_log(chosen.out, options.out / "certify.png")


def _run(options: LogOptions) -> None:
    # What computes is imported by the commands that do: it brings torch, two seconds for which neither help nor an
    # error of usage is to wait.
    from ..procedures import expected
    from ..processes import joined
    from ..runs.certify import log_run
    from ..runs.logs import environment_of
    from ..runs.records import count
    from .prepare import Ahead, described, prepare, tell_classes

    samples = options.procedure(0, 0.0).most
    with joined() as group:
        resume = group.begin(options.resume, options.out)
        seed, taken = group.first(partial(options.settled, resume))
        prepared = prepare(options, options.sigma, seed, options.noise, group.device(options.device), taken)
        prepared.require_readable()
        ahead = Ahead(
            len(prepared.indices), expected(options.settings()["method"], samples), count(options.out) if resume else 0,
            options.settings()["method"] == "fixed", group.size,
        )  # fmt: skip
        engine = prepared.smoothed.engine(prepared.first, ahead.passes)
        leads = group.rank == 0
        if leads:
            tell_classes(prepared.source, prepared.smoothed.num_classes)
            display.tell(f"{len(prepared.indices):,} images, {samples:,} samples each at most, seed {seed}")
            display.tell(described(prepared.smoothed, engine, ahead), soft_wrap=True)
        log_run(
            engine, prepared.source, prepared.indices, options.procedure, options.settings() | prepared.about,
            options.out, resume=resume, progress=progress.rows, group=group, shard=options.shard,
        )  # fmt: skip
        if not leads:
            return
        sound = bool(environment_of(options.out).get("sound", engine.sound))
        if options.as_json:
            display.print_json({"sound": sound, "classes": prepared.classes} | _figures(options.out, engine.meta))
            display.written_log(options.out)
        else:
            display.show_log(options.out)
        if not sound and engine.function.law.name == "lattice":
            display.tell(f"{options.out} is not sound: {_why(engine)} (docs/soundness.md)", style="red")


def _why(engine: Engine) -> str:
    """The reason why a log is not sound though its noise is."""
    agreement = engine.meta["row_function"]
    if agreement != "bit for bit":
        return f'the logits of a row are a function of that row "{agreement}"'
    return "the base classifier changed while it was sampled, in this run or in one before"


def _figures(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """The figures of a log, for programs."""
    from ..runs import tables
    from ..runs.logs import read_log

    logs = tables.named([read_log(path)])
    found = display.figures(tables.summary(logs), logs)
    (row,) = found["rows"]
    settings = {name: value for name, value in row.pop("settings").items() if name not in meta}
    return {"settings": settings, "meta": meta, "radii": found["radii"], **row, "log": row.pop("path")}
