"""Checkpoints of the field: where the state dict is in one, and whose names its tensors have.

Programs wrap networks before they save them, and networks of the same structure are written with other names. What is
known of both stands here, as tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .normalization import CIFAR10_COHEN_STATISTICS, IMAGENET_STATISTICS, Normalization

# Where training programs put the state dict; the first that is there counts, averaged weights beside it last.
KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "ema",
    "model_ema",
    "state_dict_ema",
)
# Names that wrappers put in front: DataParallel, torch.compile, SmoothedClassifier, AveragedModel, Lightning, timm, …
PREFIXES = ("module.", "_orig_mod.", "base.", "1.", "model.", "net.", "network.", "backbone.")
STRAYS = ("n_averaged", "sigma")  # of AveragedModel and of SmoothedClassifier, beside the network
COPIES = ("attacker.",)  # of the package `robustness`: the network once more
COUNT = "num_batches_tracked"  # of batch norms; absent before torch 0.4.1, and used by none with a fixed momentum
MEANS = ("mean", "means", "new_mean", "mu")
DEVIATIONS = ("std", "stds", "sds", "new_std", "sigma")
FRONTS = ("0.", "normalize.", "normalizer.", "normalization.", "norm.", "normalize_layer.", "")
LARGEST = 1e6  # mean or deviation of pixels, in units of their range

# Layers in front of the network that Cohen et al. 2019 name by its architecture alone: they are in no checkpoint.
ARCHITECTURES = {"cifar_resnet": CIFAR10_COHEN_STATISTICS, "resnet": IMAGENET_STATISTICS}

RESNET = (  # kuangliu, akamaster, chenyaofo, bearpaw (archs/cifar_resnet.py of Cohen et al.)
    (r"^layer(\d)\.", r"stage\1."),
    (r"\.downsample\.", ".shortcut."),
    (r"^linear\.", "fc."),
)
WIDE_RESNET = (  # xternalz, TRADES, MART
    (r"^block(\d)\.layer\.", r"stage\1."),
    (r"\.convShortcut\.", ".shortcut."),
    (r"^bn1\.", "bn."),
)


@dataclass(frozen=True)
class Fitted:
    """Tensors by the names of a network, and what stood in front of it.

    Attributes:
        tensors: name to tensor.
        behind: the network stood behind another layer, as one that normalises.
        statistics: those of that layer, where the checkpoint has them.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    behind: bool = False
    statistics: Normalization | None = None


def state_of(checkpoint: Any) -> Any:
    """The state dict in a checkpoint; the checkpoint itself where it has none by a known key.

    No method of it is called by name: a pickle may put something else in the place of one.
    """
    for _ in KEYS:  # a pickle may hold itself
        if not isinstance(checkpoint, Mapping):
            break
        held = (checkpoint[key] for key in KEYS if key in checkpoint)
        inner = next((value for value in held if isinstance(value, Mapping)), checkpoint)
        if inner is checkpoint:
            break
        checkpoint = inner
    return checkpoint


def architecture_of(checkpoint: Any) -> str:
    """The name of the architecture that a checkpoint tells, or nothing."""
    told = checkpoint["arch"] if isinstance(checkpoint, Mapping) and "arch" in checkpoint else None
    return told[:50] if isinstance(told, str) else ""


def statistics_by(architecture: str) -> Normalization | None:
    """The statistics of the layer that Cohen et al. put in front of an architecture."""
    return next((known for name, known in ARCHITECTURES.items() if architecture.startswith(name)), None)


def fitted(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Fitted:
    """The tensors of a checkpoint by the names of a network, as far as these ask for it."""
    names = {name: name for name in given}  # in the network, in the file
    behind, statistics = False, None
    while names and not _same(names, wanted):
        names = {name: source for name, source in names.items() if name in wanted or not _beside(name, names)}
        front = next((front for front in FRONTS if _is_front(front, names, wanted)), None)
        if front is not None:
            statistics = _statistics(given, names, front) or statistics
            behind = True
            names = {name: source for name, source in names.items() if not _of_front(name, front)}
        prefix = _prefix(names, wanted)
        if prefix is None:
            if front is None:
                break
            continue
        behind |= prefix == "1."
        names = {name.removeprefix(prefix): source for name, source in names.items()}
    for rules in (RESNET, WIDE_RESNET):
        renamed = {_renamed(name, rules): source for name, source in names.items()}
        if not _same(names, wanted) and _same(renamed, wanted):
            names = renamed
    tensors = {name: given[source] for name, source in names.items()}
    if tensors and _same(names, wanted):
        tensors |= {name: wanted[name] for name in wanted if name not in tensors}
    return Fitted(tensors, behind, statistics)


def _prefix(names: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The prefix of all names: one that wrappers are known to put in front, or any with the network behind it."""
    first = next(iter(names), "").partition(".")[0] + "."
    if not all(name.startswith(first) for name in names):
        return None
    return first if first in PREFIXES or any(name.removeprefix(first) in wanted for name in names) else None


def _same(names: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tells whether these are the names of the network, but for counters that batch norms do not need."""
    return names.keys() <= wanted.keys() and all(name in names or name.endswith(COUNT) for name in wanted)


def _beside(name: str, names: Mapping[str, Any]) -> bool:
    """Tells whether a name is of a wrapper, which stands beside the network."""
    if name not in STRAYS:
        return name.startswith(COPIES)
    return len({other.partition(".")[0] for other in names if other not in STRAYS}) == 1


def _is_front(front: str, names: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tells whether names are of a layer in front of the network and of the network behind it."""
    mine = [name for name in names if _of_front(name, front)]
    known = all(name.removeprefix(front) in MEANS + DEVIATIONS for name in mine)
    rest = [name for name in names if name not in mine]
    if not mine or not rest or any(name in wanted for name in mine):
        return False
    return known or (front == "0." and all(name.startswith("1.") for name in rest))


def _of_front(name: str, front: str) -> bool:
    return name.startswith(front) if front else name in MEANS + DEVIATIONS


def _statistics(given: Mapping[str, Tensor], names: Mapping[str, str], front: str) -> Normalization | None:
    """Mean and deviation of a layer in front; None where it is not one that normalises by channel."""
    found = []
    for known in (MEANS, DEVIATIONS):
        values = [given[names[front + name]].flatten() for name in known if front + name in names]
        if len(values) != 1 or not 1 <= len(values[0]) <= 16 or not values[0].is_floating_point():
            return None
        found.append(tuple(round(value, 7) for value in values[0].tolist()))
    mean, std = found
    honest = len(mean) == len(std) and all(abs(value) < LARGEST for value in mean + std) and min(std) > 0
    return (mean, std) if honest else None


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, ours in rules:
        name = re.sub(pattern, ours, name)
    return name
