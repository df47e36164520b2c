"""Networks in integers: their kernels against the definition, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache, partial

import torch
from torch import Tensor

from .. import data
from ..integers import IntegerResNet
from ..noise import lattice
from ..runners.fused import ON_GPUS, PREFERRED, FusedIntegers, preferred
from ..specs import DEMO_INTEGERS
from ..weights import read_weights
from .effort import Effort
from .records import Check, Finding, none_differ, skipped

SUBJECT = "Integers"
COPIES = 4  # of each of some images, and as many that fill all of 16 bits
IMAGES = (0, 50, 100, 150)


def checks(effort: Effort) -> Iterator[Check]:
    """Makes the checks of this subject."""
    for arithmetic in PREFERRED["int8"]:
        yield Check(SUBJECT, f"logits by {arithmetic} are those of the definition", partial(same, effort, arithmetic))


def same(effort: Effort, arithmetic: str) -> Finding:
    """Compares the logits of the embedded network in integers."""
    device = "cuda" if arithmetic in ON_GPUS else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        return skipped("no CUDA device")
    here = preferred("int8", device)
    if arithmetic not in here:
        return skipped(f"no kernels for {arithmetic}: {', '.join(here) or 'none'} live here")
    network, levels, wanted = _defined(effort.seed)
    found = FusedIntegers(deepcopy(network).to(device), arithmetic).of_levels(levels.to(device)).cpu()
    differing = int((found != wanted).any(1).sum())
    return none_differ(differing, len(wanted), "rows")


@lru_cache(maxsize=1)
def _defined(seed: int) -> tuple[IntegerResNet, Tensor, Tensor]:
    """The network, levels int16 [B, 3, 32, 32] and their logits."""
    network = read_weights(DEMO_INTEGERS).integers
    assert network is not None
    images = data.demo().images
    copies = [images[i] + lattice((3, 32, 32), 0.25, seed, i, range(COPIES)) for i in IMAGES]
    generator = torch.Generator().manual_seed(seed % 2**63)
    copies.append(torch.randint(-(2**15), 2**15, (COPIES, 3, 32, 32), generator=generator).to(torch.int16))
    levels = torch.cat(copies)
    return network, levels, network(levels)
