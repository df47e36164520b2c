"""Ops of every backend against their plain definitions, and the fused networks against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from .. import data, models, ops
from ..losses import Differentiated, cross_entropy
from ..noise import Stream, gaussian_law, lattice_law, stream_key, within
from ..ops import reference
from ..runners.fused import Fused, arithmetics, dtype_of
from ..runners.resnets import CifarResNet, recognised
from ..voting import PREDICTION, SOFT, voting_rule
from ..weights import DEMO, read_weights
from .backends import Backend, backends, on_each
from .effort import Effort
from .records import Check, Finding, judged, none_differ, skipped

SUBJECT = "Ops"
# One element; a row that ends within a tile, within 16 bytes and within a channel; vectors and what is left of one.
SHAPES = ((1, 1, 1), (3, 5, 7), (2, 4, 4), (5, 9, 11), (4, 8, 8), (3, 33, 31), (3, 40, 40))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = (torch.contiguous_format, torch.channels_last)
# Slot, image id, sample id: mixed order, a row twice, padding with any ids, ids beyond 32 bits, the last ones.
ROWS = torch.tensor(
    [(1, 7, 0), (-1, 0, 0), (1, 7, 1), (0, 2**44 - 1, 2**40 - 1), (2, 2**32 + 1, 2**32 - 1), (1, 7, 0), (-5, -1, -1)]
)
# How far Gaussian noise of two backends may be apart, in standard deviations: all but a share of it, and all. Radii of
# Box and Muller below 1/16, one in 500, come from numbers near 1, of which float32 keeps little.
NEAR, FAR, SHARE = 2.0**-20, 2.0**-11, 0.01
FUSED = ("amx", "winograd_bf16", "winograd_mixed", "winograd_fp32", "avx512_bf16")
IMAGES = 8  # that the fused networks see


def checks(effort: Effort) -> Iterator[Check]:
    """Makes the checks of this subject."""
    compared: dict[str, Callable[[Effort, Backend], Finding]] = {
        "noisy_replicas, lattice": lattice_replicas,
        "noisy_replicas, gaussian": gaussian_replicas,
        "tally": tallies,
        "tally, soft votes": soft_tallies,
        "replica_sum": sums,
        "attack_step": steps,
        "perturb_weights": weights,
    }
    for name, act in compared.items():
        yield from on_each(SUBJECT, name, partial(act, effort), backends()[1:])
    yield Check(SUBJECT, "instruction sets have equal bits", partial(equal_bits, effort))
    for arithmetic in FUSED:
        yield Check(SUBJECT, f"fused logits and gradients, {arithmetic}", partial(fused_precision, arithmetic))
        yield Check(SUBJECT, f"fused votes in one call, {arithmetic}", partial(fused_votes, effort, arithmetic))


def _generator(effort: Effort) -> torch.Generator:
    return torch.Generator().manual_seed(effort.seed % 2**63)


# ---- noisy_replicas --------------------------------------------------------------------------------------------------


def replicas(effort: Effort, law: str, image_dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
    """Arguments of `noisy_replicas` for all shapes, dtypes and formats; clipping, and a sigma for each channel, take
    turns."""
    generator = _generator(effort)
    cases = product(SHAPES, DTYPES, (False, True))
    for turn, (shape, dtype, channels_last) in enumerate(cases):
        images = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator)
        images = images / 255 if image_dtype.is_floating_point else images
        channels = shape[0]
        sigmas = [0.5, 0.12, 1.0, 0.25, 0.3][: channels if turn % 3 == 0 else 1]
        levels = 1 if image_dtype.is_floating_point else 255
        made = lattice_law(sigmas) if law == "lattice" else gaussian_law(sigmas, levels)
        statistics = ([0.485, 0.456, 0.406, 0.5, 0.4][:channels], [0.229, 0.224, 0.225, 0.3, 0.2][:channels])
        key = stream_key((effort.seed + 2**63) % 2**64, Stream.ESTIMATE)
        yield (
            images, *ROWS.T.contiguous(), key, law, made.table, *ops.affine(statistics, channels, image_dtype),
            turn % 2 == 1, dtype, channels_last,
        )  # fmt: skip


def lattice_replicas(effort: Effort, backend: Backend) -> Finding:
    """Compares noisy copies with lattice noise, bit for bit."""
    return _compared(
        (backend.returned("noisy_replicas", *case), reference.noisy_replicas(*case))
        for case in replicas(effort, "lattice", torch.uint8)
    )


def gaussian_replicas(effort: Effort, backend: Backend) -> Finding:
    """Compares noisy copies with Gaussian noise: on levels and on floats."""
    return _near(
        (
            backend.returned("noisy_replicas", *case),
            reference.noisy_replicas(*case),
            float(case[6][0].max() * case[7].max()),
        )
        for image_dtype in (torch.uint8, torch.float32)
        for case in replicas(effort, "gaussian", image_dtype)
    )


def _compared(pairs: Iterator[tuple[Tensor, Tensor]]) -> Finding:
    """Compares results bit for bit; NaN are equal to each other, zeros of two signs are not."""
    equal = [_same(found, wanted) for found, wanted in pairs]
    return none_differ(equal.count(False), len(equal), "results")


def _same(found: Tensor, wanted: Tensor) -> bool:
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return False
    if not found.is_floating_point():
        return torch.equal(found, wanted)
    broken = found.isnan()
    signs = torch.equal(found.signbit() | broken, wanted.signbit() | broken)
    return signs and torch.equal(broken, wanted.isnan()) and torch.equal(found.nan_to_num(), wanted.nan_to_num())


def _near(results: Iterator[tuple[Tensor, Tensor, float]]) -> Finding:
    """Compares results with those wanted, in units of their standard deviation; each may be off by a last place too."""
    total = beyond = 0
    worst = 0.0
    for found, wanted, unit in results:
        if found.dtype != wanted.dtype or found.shape != wanted.shape:
            return judged(False, f"{found.dtype} {list(found.shape)}", f"{wanted.dtype} {list(wanted.shape)}")
        a, b = found.double(), wanted.double()
        apart = ((a - b).abs() - torch.finfo(wanted.dtype).eps * b.abs()).nan_to_num(float("inf")) / unit
        total, beyond, worst = total + apart.numel(), beyond + int((apart > NEAR).sum()), max(worst, float(apart.max()))
    told = f"{beyond:,} of {total:,} off by more than {NEAR:.1e} sigma, at most {max(worst, 0):.1e}"
    return judged(beyond <= SHARE * total and worst <= FAR, told, f"{SHARE:.0%}, {FAR:.1e}")


# ---- the other ops ---------------------------------------------------------------------------------------------------


def logits_of(effort: Effort) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits with ties, zeros of both signs and what is not finite, and the slots of their rows."""
    generator = _generator(effort)
    for classes, dtype in product((1, 2, 10, 33, 1000), (torch.float64, *DTYPES)):
        logits = torch.randint(-4, 2, (150, classes), generator=generator).to(dtype)
        logits[::3] += torch.randn(50, classes, generator=generator).to(dtype)
        logits[torch.rand(logits.shape, generator=generator) < 0.1] *= -0.0
        for row, value in ((5, float("nan")), (17, float("inf")), (60, float("-inf")), (90, torch.finfo(dtype).max)):
            logits[row, row * 7 % classes] = value
        yield logits, torch.randint(-2, 4, (150,), generator=generator)


def _counted(backend: Backend, logits: Tensor, slots: Tensor, voting: Any) -> Tensor:
    empty = torch.zeros(4, logits.shape[1], dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    counts, invalid = backend.written("tally", (2, 3), logits, slots, *empty, voting.name, voting.weights)
    return torch.cat([counts, invalid[:, None]], 1)


def tallies(effort: Effort, backend: Backend) -> Finding:
    """Compares counts of votes, of weights by rank and of logits."""
    plain = backends()[0]
    return _compared(
        (_counted(backend, logits, slots, voting), _counted(plain, logits, slots, voting))
        for logits, slots in logits_of(effort)
        for rule in ("prediction", "weighted", "logit")
        for voting in [voting_rule(rule, logits.shape[1])]
    )


def soft_tallies(effort: Effort, backend: Backend) -> Finding:
    """Compares sums of probabilities: no row may err by more than twice what softmax in float32 errs by, and a unit."""
    plain, worst = backends()[0], 0.0
    for logits, slots in logits_of(effort):
        finite = logits[logits.isfinite().all(1)].float()
        error = (finite.softmax(1).double() - finite.double().softmax(1)).abs().max() / SOFT.unit
        apart = _counted(backend, logits, slots, SOFT) - _counted(plain, logits, slots, SOFT)
        worst = max(worst, float(apart.abs().max() / (len(logits) * (2 * error + 1))))
    return judged(worst <= 1, f"off by at most {worst:.3f} of what is allowed", "twice the error of softmax")


def sums(effort: Effort, backend: Backend) -> Finding:
    """Compares sums of the rows of images, bit for bit."""
    generator = _generator(effort)

    def cases() -> Iterator[tuple[Any, ...]]:
        for shape, dtype, form in product(SHAPES, DTYPES, FORMATS):
            rows = torch.randn(23, *shape, generator=generator).to(dtype).contiguous(memory_format=form)
            slots = torch.randint(-1, 3, (23,), generator=generator)
            yield rows, slots, torch.rand(shape[0], generator=generator) + 0.5, 4  # a fourth image has no rows

    return _compared((backend.returned("replica_sum", *case), reference.replica_sum(*case)) for case in cases())


def steps(effort: Effort, backend: Backend) -> Finding:
    """Compares steps of attacks, bit for bit: gradients with zeros, NaN and no length, clipped pixels."""
    generator, plain = _generator(effort), backends()[0]

    def cases() -> Iterator[tuple[Any, ...]]:
        for shape, norm, eps in product(SHAPES, reference.NORMS, (0.0, 8 / 255, 0.5)):
            images = torch.rand(3, *shape, generator=generator)
            near = (images + eps * (torch.rand(images.shape, generator=generator) - 0.5)).clamp(0, 1)
            slopes = torch.randn(images.shape, generator=generator)
            slopes.flatten(1)[0, ::5] = 0
            slopes[1] = 0
            slopes.view(-1)[-1] = float("nan")
            yield near, images, slopes, norm, 0.8 * eps, eps, 0.0, 1.0

    pairs = (
        (backend.written("attack_step", (0,), *case), plain.written("attack_step", (0,), *case)) for case in cases()
    )
    return _compared((found, wanted) for (found,), (wanted,) in pairs)


def networks(effort: Effort) -> Iterator[tuple[Any, ...]]:
    """Arguments of `perturb_weights`: layers of one tile to many, no and many shared numbers."""
    generator = _generator(effort)
    key = within(stream_key(effort.seed, Stream.PREDICT), Stream.WEIGHT)
    passes = torch.tensor([3, 2**32 - 1, 2**32, 2**40 - 1, 3])
    for count, rank, dtype in product((1, 3, 70), (0, 1, 5, 33), DTYPES):
        parts, scales = torch.randn(2, count, 64, generator=generator)
        factors = torch.randn(rank, count, 64, generator=generator) / 4
        tiles = torch.stack([torch.arange(count) * (2**32 // count - 1), torch.arange(count).flip(0) * 2**20])
        yield parts, scales.abs(), factors, tiles, passes, key, dtype


def weights(effort: Effort, backend: Backend) -> Finding:
    """Compares noisy weights."""
    return _near(
        (backend.returned("perturb_weights", *case), reference.perturb_weights(*case), float(case[1].max()))
        for case in networks(effort)
    )


def equal_bits(effort: Effort) -> Finding:
    """Compares Gaussian noise of the instruction sets with each other, which agree in every bit."""
    sets = [backend for backend in backends() if backend.instruction_set is not None]
    if len(sets) < 2:
        return skipped("there is no second instruction set")
    jobs = [("noisy_replicas", case) for case in replicas(effort, "gaussian", torch.float32)]
    jobs += [("perturb_weights", case) for case in networks(effort)]
    return _compared(
        (other.returned(op, *case), sets[0].returned(op, *case)) for op, case in jobs for other in sets[1:]
    )


# ---- fused networks --------------------------------------------------------------------------------------------------


def _absent(arithmetic: str) -> Finding | None:
    here = arithmetics()
    return (
        None if arithmetic in here else skipped(f"no kernels for {arithmetic}: {', '.join(here) or 'none'} live here")
    )


@lru_cache(maxsize=1)
def _embedded() -> tuple[nn.Module, CifarResNet, Tensor, Tensor]:
    """The embedded ResNet-20, as it is and as the fused kernels take it; images of the package and their labels."""
    network = models.resnet20().eval()
    read_weights(DEMO).load_into(network)
    demo = data.demo()
    return network, recognised(network, (torch.zeros(2, 3, 32, 32),)), demo.images[:IMAGES], demo.labels[:IMAGES]


def fused_precision(arithmetic: str) -> Finding:
    """Holds a fused network against float64: in bf16 it may err by twice what PyTorch errs by, in float32 by four
    times. In the median of images, since some are at a kink of a ReLU."""
    if (absent := _absent(arithmetic)) is not None:
        return absent
    network, fused, images, labels = _embedded()
    scale, shift = (part.view(-1, 1, 1) for part in ops.affine(models.CIFAR10_STATISTICS, 3, images.dtype))
    dtype = dtype_of(arithmetic)
    x = (images * scale + shift).to(dtype)
    found = Fused(fused, arithmetic, gradients=True).gradients(x, labels[:, None])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain = Differentiated(network, cross_entropy)(x.float(), labels[:, None])
    exact = Differentiated(deepcopy(network).double(), cross_entropy)(x.double(), labels[:, None])
    ratios = [
        float(_errors(ours, true).median() / _errors(theirs, true).median())
        for ours, theirs, true in zip(found, plain, exact, strict=True)
    ]
    most = 4 if dtype == torch.float32 else 2
    told = f"{ratios[0]:.2f} and {ratios[1]:.2f} of the error of PyTorch in {str(dtype).removeprefix('torch.')}"
    return judged(max(ratios) <= most, told, str(most))


def _errors(found: Tensor, exact: Tensor) -> Tensor:
    """Norms of the error of each image."""
    return (found.double() - exact).flatten(1).norm(dim=1)


def fused_votes(effort: Effort, arithmetic: str) -> Finding:
    """Compares the fused call from images to votes with its three ops, bit for bit."""
    if (absent := _absent(arithmetic)) is not None:
        return absent
    _, found, images, _ = _embedded()
    numbers = found.packed(arithmetic, gradients=False), found.shape, arithmetic
    slots = torch.randint(-1, IMAGES, (75,), generator=_generator(effort))
    law, key = lattice_law(0.25), stream_key(effort.seed, Stream.PREDICT)
    noisy = (images, slots, slots.clamp(min=0) + 7, torch.arange(75), key, law)
    affine = (*ops.affine(models.CIFAR10_STATISTICS, 3, images.dtype), False)
    apart, fused = ((torch.zeros(IMAGES, 10).long(), torch.zeros(IMAGES).long()) for _ in range(2))
    logits = ops.fused_logits(ops.noisy_replicas(*noisy, *affine, dtype_of(arithmetic)), *numbers)
    ops.tally(logits, slots, *apart, PREDICTION)
    by_one = ops.fused_votes((*noisy, *affine), *numbers, *fused)
    logits = logits.masked_fill(slots[:, None] < 0, 0)
    return _compared(iter([(by_one, logits), *zip(fused, apart, strict=True)]))
