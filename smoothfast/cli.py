"""The command line: `smoothfast …` or `python -m smoothfast …`. Exit status 0 done, 1 failed, 2 bad usage."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import analysis, attack_files, attack_runs, data, distributed, models, ops, plots, runs, sweeps
from .costs import AUTO, installed, seconds
from .engine import PRECISIONS, Engine, Job, resolve_precision
from .fused import processors
from .layers import scale_noise
from .logs import read_log
from .losses import LOSSES
from .noise import Stream
from .procedures import (
    CERTIFY_METHODS,
    PREDICT_METHODS,
    Count,
    FixedCertify,
    Procedure,
    certify_procedure,
    predict_procedure,
)
from .reference import NORMS
from .smoothing import NOISES, SmoothedClassifier, checked_images, elected, pixels
from .specs import at_least, choice, fraction
from .statistics import TOP_SHARE
from .training import LEARNED, PRESETS, RECIPES, SCHEDULES, SELECTIONS, Settings, Trainer
from .training import NORMS as TRAINING_NORMS
from .training import PRECISIONS as TRAINING_PRECISIONS
from .voting import NAMES as VOTINGS
from .weights import DEMO as DEMO_WEIGHTS
from .weights import Weights, read_weights

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(stderr=True)  # tables go to stdout, everything else here

PLACEHOLDER = 0.25  # sigma of a classifier of which a sweep uses all but that
DEMO_SECONDS = 120.0  # sampling time that `demo` chooses n for; with imports and compilation it stays under 3 minutes
DEMO_PASSES = 500_000  # about what that time is enough for: n is not known before the runner is
DEMO_SAMPLES = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
NORMALIZATIONS = ("none", *models.STATISTICS)
BENCHMARKS = {"noise": "noisy_replicas"} | {
    name: name
    for name in (
        "tally", "replica_sum", "attack_step", "weights", "fused", "samples", "certify", "methods", "flights",
        "threads", "processes", "memory", "start", "scaling", "attack", "strength",
    )
}  # fmt: skip
PICTURED = 8  # images in the picture of an attack
OVER_IMAGES = ("methods", "flights", "processes", "scaling", "strength")  # benchmarks

Item = TypeVar("Item")


def _of(values: Iterable[str]) -> str:
    return f"One of {', '.join(values)}."


ModelOption = Annotated[str, typer.Option("--model", help=f"Base classifier: {models.SPECS}.")]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="safetensors or torch file; embedded if not given.")
]
DataOption = Annotated[str, typer.Option("--data", help=f"{data.SPECS}.")]
SigmaOption = Annotated[float, typer.Option("--sigma", help="Standard deviation of the noise, in [0, 1] pixel units.")]
ClassesOption = Annotated[
    int | None, typer.Option("--classes", help="Number of classes, if neither weights nor data tell.")
]
NormalizeOption = Annotated[
    str | None,
    typer.Option(
        "--normalize", help=f"{_of(NORMALIZATIONS)} After the noise; as in training if the weights tell, else none."
    ),
]
NoiseOption = Annotated[str | None, typer.Option("--noise", help=f"{_of(NOISES)} By the images if not given.")]
AlphaOption = Annotated[float, typer.Option("--alpha", help="Error level per image.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of all noise.")]
SkipOption = Annotated[int, typer.Option("--skip", help="Take every skip-th image.")]
MaxOption = Annotated[int | None, typer.Option("--max", help="Take at most this many images.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Rows per forward pass; by image size if not given.")]
RunnerOption = Annotated[str, typer.Option("--runner", help=f"{_of(AUTO)} auto: what takes least for this run.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help=f"{_of(PRECISIONS)} auto is bf16 where hardware has it.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")]
OutOption = Annotated[Path, typer.Option("--out", help="The log to write.")]
ShardOption = Annotated[
    str, typer.Option("--shard", help=f"{_of(distributed.SHARDS)} What processes share out that torchrun starts.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run if there is one.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the log and the picture.")] = Path("smoothfast-demo"),
    n: Annotated[
        int | None, typer.Option(help="Samples per image; as many as three minutes allow if not given.")
    ] = None,
    images: Annotated[int, typer.Option("--max", help="Take at most this many of the 200 images.")] = 200,
    runner: RunnerOption = "auto",
) -> None:
    """Certify the embedded images with the embedded model: a table, a log and a picture."""
    weights = read_weights(DEMO_WEIGHTS)
    indices = runs.chosen(len(data.demo()), 1, images)
    smoothed = _smoothed("resnet20", weights, 10, 0.25, runner=runner)
    console.print(f"ResNet-20 trained under noise sigma 0.25 on CIFAR-10 (JPEG), {len(indices)} test images")
    image = data.demo().images[:1]
    with console.status("preparing the base classifier"):
        engine = smoothed.engine(image, DEMO_PASSES)
    console.print(_described(smoothed, engine, image, DEMO_PASSES))
    if n is None:
        speed = _seconds_per_sample(engine, data.demo().images)
        n = max(m for m in DEMO_SAMPLES if m == DEMO_SAMPLES[0] or speed * len(indices) * (m + 100) < DEMO_SECONDS)
        console.print(
            f"{speed * 1e6:.0f} microseconds per noisy copy here, so n = {n:,} samples per image (--n changes it)"
        )
    settings = {"command": "demo", "n0": 100, "n": n, "alpha": 0.001, "bound": "multiclass", "sigma": [0.25], "seed": 0}
    log = out / "certify.tsv"
    for old in (log, log.with_name(log.name + ".json")):
        old.unlink(missing_ok=True)
    runs.log_run(
        engine, data.demo(), indices,
        lambda _, deviation: FixedCertify(100, n, 0.001, 0.25, "multiclass", deviation=deviation), settings, log,
        progress=_progress,
    )  # fmt: skip
    _show([log], out / "certify.png")


@app.command()
def certify(
    out: OutOption,
    data_spec: DataOption = "demo",
    model: ModelOption = "resnet20",
    weights: WeightsOption = None,
    sigma: SigmaOption = 0.25,
    n0: Annotated[int, typer.Option("--n0", help="Samples that select the class.")] = 100,
    n: Annotated[int, typer.Option("--n", help="Samples that bound its probability.")] = 100_000,
    alpha: AlphaOption = 0.001,
    method: Annotated[str, typer.Option(help=f"{_of(CERTIFY_METHODS)} All but fixed stop early.")] = "fixed",
    radius: Annotated[
        float | None, typer.Option(help="For sequential: is it certified at this radius, in [0, 1] pixel units?")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="For tolerance: how far below the radius of n samples, in units of sigma.")
    ] = None,
    bound: Annotated[str, typer.Option(help=_of(TOP_SHARE))] = "multiclass",
    labels_known: Annotated[
        bool, typer.Option("--labels-known", help="Certify the label of the data; no samples select a class.")
    ] = False,
    classes: ClassesOption = None,
    normalize: NormalizeOption = None,
    noise: NoiseOption = None,
    runner: RunnerOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "cpu",
    batch: BatchOption = None,
    seed: SeedOption = 0,
    skip: SkipOption = 1,
    limit: MaxOption = None,
    shard: ShardOption = "images",
    resume: ResumeOption = False,
) -> None:
    """Certify images: a class and an L2 radius for each, and the table of certified accuracy."""
    settings = {
        "command": "certify", "n0": n0, "n": n, "alpha": alpha, "method": method, "radius": radius,
        "tolerance": tolerance, "bound": bound, "labels_known": labels_known,
    }  # fmt: skip

    def procedure(label: int, deviation: float) -> Procedure:
        known = label if labels_known else None
        return certify_procedure(method, n0, n, alpha, sigma, bound, radius, tolerance, known, deviation=deviation)

    _run(
        procedure, settings, data_spec, model, weights, sigma, classes,
        normalize, noise, runner, precision, device, batch, seed, skip, limit, out, shard, resume,
    )  # fmt: skip


@app.command()
def predict(
    out: OutOption,
    data_spec: DataOption = "demo",
    model: ModelOption = "resnet20",
    weights: WeightsOption = None,
    sigma: SigmaOption = 0.25,
    n: Annotated[int, typer.Option("--n", help="Samples per image.")] = 1000,
    alpha: AlphaOption = 0.001,
    method: Annotated[str, typer.Option(help=f"{_of(PREDICT_METHODS)} sequential stops early.")] = "fixed",
    classes: ClassesOption = None,
    normalize: NormalizeOption = None,
    noise: NoiseOption = None,
    runner: RunnerOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "cpu",
    batch: BatchOption = None,
    seed: SeedOption = 0,
    skip: SkipOption = 1,
    limit: MaxOption = None,
    shard: ShardOption = "images",
    resume: ResumeOption = False,
) -> None:
    """Predict images with the smoothed classifier, abstaining where the votes do not decide."""
    settings = {"command": "predict", "n": n, "alpha": alpha, "method": method}
    _run(
        lambda *_: predict_procedure(method, n, alpha), settings, data_spec, model, weights, sigma, classes,
        normalize, noise, runner, precision, device, batch, seed, skip, limit, out, shard, resume,
    )  # fmt: skip


@app.command()
def attack(
    name: Annotated[str, typer.Option("--attack", help=_of(attack_runs.ATTACKS))],
    out: Annotated[Path, typer.Option("--out", help="safetensors file of the adversarial images and the votes.")],
    data_spec: DataOption = "demo",
    model: ModelOption = "resnet20",
    weights: WeightsOption = None,
    sigma: SigmaOption = 0.25,
    source: Annotated[
        str, typer.Option(help=f"What images are crafted on. {_of(attack_runs.SOURCES)} base: without noise.")
    ] = "smoothed",
    eps: Annotated[str | None, typer.Option(help="Radius of the ball in [0, 1] pixel units, as 0.03 or 8/255.")] = None,
    alpha: Annotated[str | None, typer.Option(help="Length of a step, likewise; eps/4 if not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many.")] = None,
    samples: Annotated[int | None, typer.Option(help="Noisy copies behind each gradient or loss.")] = None,
    norm: Annotated[str | None, typer.Option(help=f"Of the ball. {_of(NORMS)}")] = None,
    restarts: Annotated[int | None, typer.Option(help="From other starts; the best counts.")] = None,
    loss: Annotated[str | None, typer.Option(help=_of(LOSSES))] = None,
    targeted: Annotated[
        str | None, typer.Option(help=f"The class to be reached. {_of(attack_runs.TARGETED)} none: any but the label.")
    ] = None,
    votes: Annotated[int, typer.Option(help="Fresh samples by which the smoothed classifier judges an image.")] = 100,
    picture: Annotated[
        Path | None, typer.Option(help=f"PNG or PDF of the first {PICTURED} images and what was done to them.")
    ] = None,
    classes: ClassesOption = None,
    normalize: NormalizeOption = None,
    runner: RunnerOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "cpu",
    batch: BatchOption = None,
    seed: SeedOption = 0,
    skip: SkipOption = 1,
    limit: MaxOption = None,
    resume: ResumeOption = False,
) -> None:
    """Attack images: accuracy of base and smoothed classifier before and after, decided by fresh votes.

    Options that are not given are as the attack has them; one that it does not take is an error.
    """
    distributed.require_one("attack")
    given = {
        "eps": _fraction("eps", eps), "alpha": _fraction("alpha", alpha), "steps": steps, "samples": samples,
        "norm": norm, "restarts": restarts, "loss": loss, "targeted": targeted,
    }  # fmt: skip
    options = attack_runs.options(name, given)
    if votes < 1:
        raise ValueError(f"votes is {votes}; it must be at least 1")
    choice("runner", runner, AUTO)
    attack_files.check_out(out, resume)
    if picture is not None:
        plots.require_format(picture, "picture")
    smoothed, images, indices, settings = _prepared(
        data_spec, model, weights, sigma, classes, skip, limit, normalize=normalize, seed=seed, precision=precision,
        max_batch=batch, runner=runner, device=device,
    )  # fmt: skip
    crafted = attack_runs.make(name, smoothed, source, options)
    with nullcontext() if picture is None else attack_files.whole(picture) as drawing:
        with attack_files.whole(out) as tensors:
            image = checked_images(images[indices[0]][0][None])
            console.print(f"{len(indices):,} images, {name} on the {source} classifier: {json.dumps(options)}")
            with console.status("preparing the base classifier"):
                passes, engine = attack_runs.settle(crafted, smoothed, image, len(indices), votes)
            console.print(f"attack: {passes.runner} base classifier, precision {passes.precision}")
            console.print(f"votes: {_described(smoothed, engine, image, 2 * len(indices) * votes)}")
            size = attack_runs.at_once(passes, crafted.samples)
            bar = _bar(f"batches of {min(size, len(indices)):,} images")
            by = {"runner": passes.runner, "precision": passes.precision, "micro_batch": passes.micro_batch}
            settings |= {"command": "attack", "attack": name, "source": source, "votes": votes} | options
            settings |= {"crafted_by": by, "judged_by": engine.meta}
            done = attack_files.kept(out, settings, indices)
            keep = partial(attack_files.keep, out, settings)
            attacked = attack_runs.run(crafted, smoothed, images, indices, votes, size, bar, done, keep)
            print(attack_runs.tables(attacked, name))
            attack_files.save(attacked, settings, tensors)
        attack_files.discard_parts(out)
        if drawing is not None:
            _draw(images, attacked, drawing)
    console.print(f"written: {', '.join(str(path) for path in (out, picture) if path is not None)}")


@app.command()
def train(
    data_spec: DataOption,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    preset: Annotated[
        str | None, typer.Option(help=f"What options that are not given are. {_of(PRESETS)} quick-RECIPE if not given.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help=f"{_of(RECIPES)} gaussian if neither this nor preset.")] = None,
    model: ModelOption = "resnet20",
    weights: Annotated[Path | None, typer.Option(help="safetensors or torch file to start from: a fine-tune.")] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Standard deviation of the noise on images, in [0, 1] pixel units.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training images; may be a fraction.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The largest.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="On weights of convolutions and linear layers.")] = None,
    schedule: Annotated[str | None, typer.Option(help=f"Of the learning rate. {_of(SCHEDULES)}")] = None,
    milestones: Annotated[
        str | None, typer.Option(help="Of multi-step: epochs after which the rate falls, separated by commas.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradients of a step.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius of the ball in [0, 1] pixel units, as 0.03 or 8/255.")] = None,
    alpha: Annotated[str | None, typer.Option(help="Length of a step of the attack, likewise.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the attack.")] = None,
    samples: Annotated[int | None, typer.Option(help="Noisy copies behind each of its gradients.")] = None,
    train_samples: Annotated[int | None, typer.Option(help="Of these copies, as many are trained on.")] = None,
    adversarial_weight: Annotated[float | None, typer.Option(help="Of the loss of adversarial images.")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of the divergence.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Epochs over which eps grows.")] = None,
    noise_strength: Annotated[
        float, typer.Option(help="Of the noise in the network at first, in units of that in the papers.")
    ] = 1.0,
    learn: Annotated[str | None, typer.Option(help=f"{_of(LEARNED)} noise: its strengths alone.")] = None,
    norms: Annotated[str | None, typer.Option(help=f"Statistics that batch norms take. {_of(TRAINING_NORMS)}")] = None,
    validation: Annotated[int | None, typer.Option(help="Training images that are held out.")] = None,
    select: Annotated[
        str | None, typer.Option(help=f"The epoch whose weights are kept, by validation. {_of(SELECTIONS)}")
    ] = None,
    normalize: NormalizeOption = None,
    classes: ClassesOption = None,
    precision: Annotated[str | None, typer.Option(help=_of(TRAINING_PRECISIONS))] = None,
    device: DeviceOption = "cpu",
    seed: Annotated[int | None, typer.Option(help="Of order, crops, flips and all noise.")] = None,
    test: Annotated[str | None, typer.Option(help="Images to record accuracies on; a --data spec.")] = None,
    resume: ResumeOption = False,
) -> None:
    """Train a base classifier for smoothing."""
    start = Weights({}) if weights is None else read_weights(weights)
    settings = _training_settings(preset or f"quick-{recipe or 'gaussian'}", start, normalize, {
        "recipe": recipe, "sigma": sigma, "epochs": epochs, "batch": batch, "learning_rate": learning_rate,
        "weight_decay": weight_decay, "schedule": schedule, "milestones": _numbers("milestones", milestones),
        "clip_norm": clip_norm, "eps": _fraction("eps", eps), "alpha": _fraction("alpha", alpha), "steps": steps,
        "samples": samples, "train_samples": train_samples, "adversarial_weight": adversarial_weight, "beta": beta,
        "warmup": warmup, "learn": learn, "norms": norms, "validation": validation, "select": select,
        "precision": precision, "seed": seed,
    })  # fmt: skip
    source = data.load(data_spec, "train")
    num_classes = _num_classes(classes, start.about, source)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = scale_noise(models.load(model, num_classes), noise_strength)
    if start.tensors:
        start.load_into(network)
    with distributed.joined() as group:
        leads = group.rank == 0
        held_out = None if test is None else data.in_memory(data.load(test, "test"))
        about = {"model": model, "num_classes": str(num_classes), "data": data_spec}
        if noise_strength != 1:
            about["noise_strength"] = str(noise_strength)
        if leads:
            console.print(f"reading {len(source):,} training images")
        images = data.in_memory(source, _bar("images") if leads else iter)
        trainer = Trainer(_moved(network, group.device(device)), images, settings, out, held_out, about, group)

        def epoch(steps: range) -> Iterator[int]:
            return _bar(f"epoch {trainer.epoch + 1}/{math.ceil(settings.epochs)}")(steps) if leads else iter(steps)

        metrics = trainer.fit(epoch, resume)
        if leads:
            console.print(f"{out / 'model.safetensors'}: {json.dumps(metrics)}")


@app.command()
def sweep(
    out: Annotated[Path, typer.Option("--out", help="CSV file of the rows; those that are in it are not made again.")],
    data_spec: DataOption = "demo",
    model: ModelOption = "resnet20",
    weights: WeightsOption = None,
    sigmas: Annotated[
        str, typer.Option(help="Of the noise on images, separated by commas; 0: none but the network's own.")
    ] = "0,0.06,0.12,0.25",
    samples: Annotated[str, typer.Option(help="Rising numbers, separated by commas.")] = "1,4,16,64",
    voting: Annotated[str, typer.Option(help=f"Rules, separated by commas. {_of(VOTINGS)}")] = ",".join(VOTINGS[:3]),
    name: Annotated[
        str | None, typer.Option("--attack", help=f"{_of(attack_runs.ATTACKS)} None if not given: clean images alone.")
    ] = None,
    attack_sigma: Annotated[
        float, typer.Option(help="Noise on images that the attack sees; 0: none but the network's own.")
    ] = 0.0,
    attack_seeds: Annotated[int, typer.Option(help="The attack is made by so many seeds; their spread is shown.")] = 1,
    eps: Annotated[str | None, typer.Option(help="Radius of the ball in [0, 1] pixel units, as 0.03 or 8/255.")] = None,
    alpha: Annotated[str | None, typer.Option(help="Length of a step, likewise; eps/4 if not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the attack.")] = None,
    attack_samples: Annotated[int | None, typer.Option(help="Noisy copies or passes behind each gradient.")] = None,
    restarts: Annotated[int | None, typer.Option(help="From other starts; the best counts.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG or PDF of accuracy against samples and against sigma.")] = None,
    classes: ClassesOption = None,
    normalize: NormalizeOption = None,
    runner: RunnerOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "cpu",
    batch: BatchOption = None,
    seed: SeedOption = 0,
    skip: SkipOption = 1,
    limit: MaxOption = None,
) -> None:
    """Accuracy by noise, voting rule and number of samples, on clean images and on those of one attack."""
    distributed.require_one("sweep")
    if plot is not None:
        plots.require_format(plot)
    options = {} if name is None else attack_runs.options(
        name,
        {"eps": _fraction("eps", eps), "alpha": _fraction("alpha", alpha), "steps": steps, "samples": attack_samples,
         "restarts": restarts},
    )  # fmt: skip
    options.pop("targeted", None)  # away from the labels
    at_least(1, attack_seeds=attack_seeds)
    smoothed, source, indices, about = _prepared(
        data_spec, model, weights, attack_sigma or PLACEHOLDER, classes, skip, limit, normalize=normalize, seed=seed,
        precision=precision, max_batch=batch, runner=runner, device=device,
    )  # fmt: skip
    plan = sweeps.Sweep(
        smoothed, _numbers("sigmas", sigmas) or (), voting.split(","),
        _integers("samples", samples), name, options | {"sigma": attack_sigma},
        range(attack_seeds),
    )  # fmt: skip
    settings = about | {"command": "sweep", "sigma": None, "attack": name, **plan.options, "samples": plan.samples}
    rows = sweeps.begin(out, settings | {"sigmas": plan.sigmas, "voting": plan.votings})
    ids = torch.tensor(indices)
    chosen = data.in_memory(torch.utils.data.Subset(source, indices), _bar("images"))  # type: ignore[arg-type]
    for block in plan.rows(pixels(chosen.images), chosen.labels, ids, rows, _bar("sigmas and attacks")):
        sweeps.write(block, out)
        rows += block
    print(sweeps.table(rows))
    if plot is not None:
        plots.sweep(rows, plot)
    console.print(f"written: {', '.join(str(path) for path in (out, plot) if path is not None)}")


@app.command()
def analyze(
    logs: Annotated[list[Path], typer.Argument(help="Logs of certify or predict, or of Cohen et al.")],
    radii: Annotated[str | None, typer.Option(help="Comma-separated, for example 0,0.25,0.5.")] = None,
    table_format: Annotated[str, typer.Option("--format", help=_of(get_args(analysis.Format)))] = "markdown",
    plot: Annotated[Path | None, typer.Option(help="PNG or PDF of certified accuracy against radius.")] = None,
) -> None:
    """Certified accuracy by radius, average certified radius and abstention of one or more logs."""
    columns = _numbers("radii", radii)
    named = analysis.named([read_log(path) for path in logs])
    print(analysis.render(analysis.summary(named, columns), table_format))  # type: ignore[arg-type]
    if plot is not None:
        plots.certified_accuracy_curve(named, plot)


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help=_of(BENCHMARKS))],
    out: Annotated[Path | None, typer.Option(help="CSV file to append the rows to.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG or PDF of the rows.")] = None,
    limit: Annotated[
        int | None, typer.Option("--max", help=f"Take so many of the embedded images; of {', '.join(OVER_IMAGES)}.")
    ] = None,
) -> None:
    """Measure a part of the package beside what people use today."""
    choice("benchmark", what, BENCHMARKS)
    if limit is not None and what not in OVER_IMAGES:
        raise ValueError(f"max is {limit}; {what} has no number of images, only {', '.join(OVER_IMAGES)} have")
    if plot is not None:
        plots.require_format(plot)
    suite = import_module(f"{__package__}.benchmarks.{BENCHMARKS[what]}")
    rows = suite.main(out) if limit is None else suite.main(out, limit)
    if plot is not None:
        import_module(f"{__package__}.benchmarks.pictures").draw(rows, plot)


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """What is built and installed, which GPUs there are, which kernels and instruction sets are live."""
    extension = ops.extension
    facts: dict[str, Any] = runs.environment() | {
        "extension": None if extension is None else extension.build_info(),
        "instruction_sets": [] if extension is None else extension.supported_instruction_sets(),
        "fused": processors() or "this processor lacks AVX512-BF16, or smoothfast._C is not built",
        "backends": ops.backends(),
        "devices": runs.devices(),
        "driver": runs.driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "libraries": runs.libraries(),
        "precision": resolve_precision("auto", torch.device("cpu")),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(facts, indent=2) if as_json else "\n".join(f"{name:17} {fact}" for name, fact in facts.items()))


def main() -> None:
    """Entry point; an error is one line and an exit status."""
    try:
        app()
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        distributed.once(partial(_complain, error))
        sys.exit(2)
    except (OSError, FloatingPointError) as error:
        distributed.once(partial(_complain, error))
        sys.exit(1)


def _complain(error: Exception) -> None:
    console.print(
        f"smoothfast: {' '.join(str(error).split())}", style="red", highlight=False, soft_wrap=True, markup=False
    )


def _fraction(argument: str, value: str | None) -> float | None:
    return None if value is None else fraction(argument, value)


def _integers(argument: str, value: str) -> list[int]:
    try:
        return [int(number) for number in value.split(",")]
    except ValueError:
        raise ValueError(f"{argument} is {value!r}; it must be integers separated by commas") from None


def _numbers(argument: str, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(float(number) for number in value.split(","))
    except ValueError:
        raise ValueError(f"{argument} is {value!r}; it must be numbers separated by commas") from None


def _run(
    procedure: Callable[[int, float], Procedure],
    settings: dict[str, Any],
    data_spec: str,
    model: str,
    weights_path: Path | None,
    sigma: float,
    classes: int | None,
    normalize: str | None,
    noise: str | None,
    runner: str,
    precision: str,
    device: str,
    batch: int | None,
    seed: int,
    skip: int,
    limit: int | None,
    out: Path,
    shard: str,
    resume: bool,
) -> None:
    samples = procedure(0, 0.0).most  # its arguments are checked before anything is loaded
    choice("runner", runner, AUTO)
    choice("shard", shard, tuple(distributed.SHARDS))
    with distributed.joined(shard) as group:
        resume = group.begin(resume, out)
        smoothed, source, indices, about = _prepared(
            data_spec, model, weights_path, sigma, classes, skip, limit, normalize=normalize, noise=noise, seed=seed,
            precision=precision, max_batch=batch, runner=runner, device=group.device(device),
        )  # fmt: skip
        settings = settings | about
        passes = _expected(settings["method"], samples) * len(indices)
        image = checked_images(source[indices[0]][0][None])
        engine = smoothed.engine(image, passes)
        if group.rank == 0:
            console.print(f"{len(indices):,} images, {samples:,} samples each at most")
            console.print(_described(smoothed, engine, image, passes))
        runs.log_run(engine, source, indices, procedure, settings, out, resume, _progress, group)
        if group.rank == 0:
            _show([out])


def _prepared(
    data_spec: str, model: str, weights_path: Path | None, sigma: float, classes: int | None, skip: int,
    limit: int | None, **options: Any,
) -> tuple[SmoothedClassifier, data.Labelled, list[int], dict[str, Any]]:  # fmt: skip
    """The smoothed classifier, the data set, which of its images, and what the record of a run says of these."""
    weights = _weights(model, weights_path)
    source = data.load(data_spec)
    if not len(source):
        raise ValueError(f"data is {data_spec!r}, which holds no images")
    indices = runs.chosen(len(source), skip, limit)
    smoothed = _smoothed(model, weights, _num_classes(classes, weights.about, source), sigma, **options)
    about = {
        "data": data_spec, "model": model, "weights": weights.sha256, "sigma": smoothed.sigma.tolist(),
        "normalize": smoothed.normalize, "seed": smoothed.seed, "skip": skip, "max": limit,
    }  # fmt: skip
    return smoothed, source, indices, about


def _weights(model: str, path: Path | None) -> Weights:
    """Those of a file; the embedded ones, or none for a model that may come with its own."""
    own = ":" in model and model.partition(":")[0] not in ("torchvision", "timm")
    if path is None and own:
        return Weights({})
    if path is None and model != "resnet20":
        raise ValueError(f"weights is not given; the embedded weights are of resnet20, and model is {model}")
    return read_weights(path or DEMO_WEIGHTS)


def _expected(method: str, samples: int) -> int:
    """Forward passes an image takes in the mean, roughly: stopping early saves most of them."""
    return samples if method == "fixed" else max(samples // 20, 200)


def _smoothed(
    model: str, weights: Weights, num_classes: int, sigma: float, normalize: str | None = None, device: str = "cpu",
    **options: Any,
) -> SmoothedClassifier:  # fmt: skip
    network = models.load(model, num_classes)
    if weights.tensors:
        weights.load_into(network)
    statistics = weights.settings.get("normalize") if normalize is None else _statistics(normalize)
    return SmoothedClassifier(_moved(network.eval(), device), sigma, num_classes, normalize=statistics, **options)


def _training_settings(preset: str, start: Weights, normalize: str | None, given: dict[str, Any]) -> Settings:
    """Those of a preset but for those given, for a network that starts from some weights."""
    choice("preset", preset, PRESETS)
    if preset.endswith("-finetune") and not start.tensors:
        raise ValueError(f"weights is not given; preset {preset!r} goes on from trained ones")
    overrides = {name: value for name, value in given.items() if value is not None}
    overrides["initial"] = start.sha256 or None
    if normalize is not None:
        overrides["normalize"] = _statistics(normalize)
    elif "normalize" in start.settings:
        overrides["normalize"] = start.settings["normalize"]
    return replace(PRESETS[preset], **overrides)


def _moved(network: torch.nn.Module, device: str) -> torch.nn.Module:
    try:
        return network.to(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, which cannot be used: {error}") from error


def _statistics(normalize: str) -> ops.Statistics | None:
    choice("normalize", normalize, NORMALIZATIONS)
    return models.STATISTICS.get(normalize)


def _num_classes(classes: int | None, about: dict[str, str], source: data.Labelled) -> int:
    """From the command line, else the weights file, else the data set."""
    if classes is not None and classes < 2:
        raise ValueError(f"classes is {classes}; it must be at least 2")
    known = classes or int(about.get("num_classes", 0)) or len(getattr(source, "classes", ()))
    if not known:
        raise ValueError("classes is not given, and neither the weights nor the data tell it; pass --classes")
    return known


def _described(smoothed: SmoothedClassifier, engine: Engine, image: torch.Tensor, passes: int) -> str:
    """How the base classifier is run, and what so many forward passes were expected to take by each runner."""
    normalization = "none" if smoothed.normalize is None else smoothed.normalize
    how = f"{engine.runner} base classifier, precision {engine.precision}, normalisation {normalization}"
    if smoothed.runner != "auto" or engine.device.type != "cpu":
        return how
    network, cores = smoothed.network(image), len(engine.lanes)
    expected = ", ".join(
        f"{runner} {seconds(runner, network, passes, engine.precision, cores):,.0f} s"
        for runner in installed(network, engine.precision)
    )
    return f"{how}\nexpected for {passes:,} forward passes: {expected}"


def _seconds_per_sample(engine: Engine, images: torch.Tensor) -> float:
    """Measured on 8 micro-batches after one to warm up, of samples that no certificate uses."""
    job = Job(images[0], 0, Count(engine.micro_batch, stream=Stream.TRAIN))
    list(engine.run([job]))
    started = time.perf_counter()
    list(engine.run([Job(images[0], 0, Count(8 * engine.micro_batch, stream=Stream.TRAIN))]))
    return (time.perf_counter() - started) / (8 * engine.micro_batch)


def _show(logs: list[Path], picture: Path | None = None) -> None:
    named = analysis.named([read_log(path) for path in logs])
    print(analysis.render(analysis.summary(named), "markdown"))
    for log in named.values():
        console.print(analysis.effort(log), soft_wrap=True)
    written = [str(path) for path in logs]
    if picture is not None:
        plots.certified_accuracy_curve(named, picture)
        written.append(str(picture))
    console.print(f"written: {', '.join(written)}")


def _draw(source: data.Labelled, attacked: attack_files.Attacked, path: Path) -> None:
    """The first images, their perturbations and the class that they end with."""
    columns = {name: values[:PICTURED] for name, values in attacked.columns.items()}
    clean = pixels(torch.stack([source[index][0] for index in columns["indices"].tolist()]))
    ends = zip(columns["labels"].tolist(), elected(columns["smoothed_adversarial"]).tolist(), strict=True)
    titles = [f"label {label}\nvoted {vote}" for label, vote in ends]
    plots.perturbation_gallery(clean, columns["adversarial"], titles, path)


def _bar(what: str) -> Callable[[Iterable[Item]], Iterator[Item]]:
    """A progress bar over a sized iterable."""

    def wrap(items: Iterable[Item]) -> Iterator[Item]:
        with _columns() as bar:
            yield from bar.track(items, description=what)

    return wrap


def _progress(decisions: Iterable[Item], left: int, done: int) -> Iterator[Item]:
    with _columns() as bar:
        task = bar.add_task("images", total=left + done, completed=done)
        for decision in decisions:
            yield decision
            bar.advance(task)


def _columns() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=console,
    )  # fmt: skip
