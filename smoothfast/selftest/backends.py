"""Backends of the ops that are live here, each instruction set a backend of its own, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import environment, ops
from ..ops.backend import LIVE
from .records import Check, Finding, skipped

INSTRUCTION_SETS = ("scalar", "avx2", "avx512")


@dataclass(frozen=True)
class Backend:
    """A backend of the ops.

    Attributes:
        name: as it stands in records.
        kernels: has the ops, by name.
        device: where their tensors are.
        instruction_set: of the compiled kernels on the CPU.
    """

    name: str
    kernels: Any
    device: str = "cpu"
    instruction_set: str | None = None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Switches the compiled kernels to the instruction set, and back in the end."""
        extension = ops.extension
        if extension is None or self.instruction_set is None:
            yield
            return
        former = extension.instruction_set()
        extension.use_instruction_set(self.instruction_set)
        try:
            yield
        finally:
            extension.use_instruction_set(former)

    def returned(self, op: str, *arguments: Any) -> Tensor:
        """Result of an op, on the CPU."""
        with self.in_use():
            return getattr(self.kernels, op)(*map(self._sent, arguments)).cpu()

    def written(self, op: str, places: tuple[int, ...], *arguments: Any) -> list[Tensor]:
        """Copies of the arguments at these places, as an op has written them, on the CPU."""
        sent = [self._sent(part.clone() if i in places else part) for i, part in enumerate(arguments)]
        with self.in_use():
            getattr(self.kernels, op)(*sent)
        return [sent[place].cpu() for place in places]

    def _sent(self, argument: Any) -> Any:
        if isinstance(argument, (tuple, list)):
            return [self._sent(part) for part in argument]
        return argument.to(self.device) if isinstance(argument, Tensor) else argument


def backends() -> list[Backend]:
    """The backends that are live here; the plain definition is the first."""
    found = [Backend("reference", ops.reference)]
    compiled = torch.ops.smoothfast
    if ops.extension is not None:
        here = ops.extension.supported_instruction_sets()
        found += [Backend(name, compiled, instruction_set=name) for name in INSTRUCTION_SETS if name in here]
    for gpu in environment.devices():
        device = str(gpu["device"])
        found.append(Backend(f"{device} {LIVE[device.partition(':')[0]][0]}", compiled, device))
    return found


def missing() -> dict[str, str]:
    """Backends that are not here, by name, and why."""
    kinds = {str(gpu["device"]).partition(":")[0] for gpu in environment.devices()}
    absent = {kind: f"torch sees no GPU of kind {kind}" for kind in ops.GPUS if kind not in kinds}
    if ops.extension is None:
        return {"compiled kernels": ops.backends()["cpu"].removeprefix("reference ").strip("()")} | absent
    here = ops.extension.supported_instruction_sets()
    return {name: f"this processor lacks {name}" for name in INSTRUCTION_SETS if name not in here} | absent


def on_each(
    subject: str, name: str, act: Callable[[Backend], Finding], live: Iterable[Backend] | None = None
) -> Iterator[Check]:
    """Makes a check for each backend, of all if none are given, and one that is skipped for each that is missing."""
    for backend in backends() if live is None else live:
        yield Check(subject, f"{name}, {backend.name}", partial(act, backend))
    for absent, reason in missing().items():
        yield Check(subject, f"{name}, {absent}", partial(skipped, reason))
