"""The smoothed classifier as a module: copies, checkpoints, dtypes, and how it introduces itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .. import former
from ..engine import Adapter, BaseFunction, Engine
from ..introductions import brief, introduction
from ..modules import warn
from ..runners.choice import RunnerCache
from ..turns import Turns

HALVES = {torch.float16: "fp16", torch.bfloat16: "bf16"}  # what to say instead


class StatefulModule(nn.Module):
    """A module with a base classifier and a sigma, of which neither is rounded, nor changed without a word."""

    base: nn.Module
    sigma: Tensor
    _engines: RunnerCache[BaseFunction, Engine]

    def __repr__(self) -> str:
        """The call that makes this classifier, but for the base classifier, of which there is the class alone."""
        sigmas = self.sigma.tolist()
        names = "samples", "normalize", "noise", "seed", "precision", "max_batch", "runner", "clip", "bounds"
        told = {"sigma": sigmas[0] if len(sigmas) == 1 else sigmas, "num_classes": self.known_classes}
        told |= {"samples": self.samples, "voting": self._rule}
        told |= {name: getattr(self, name) for name in (*names[1:], "deterministic")}
        return introduction(self, brief(self.base), told)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the engines, which are made anew where they are needed."""
        made = ("_engines", "_adapter", "turns")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(former.classifier_state(state))  # type: ignore[no-untyped-call]
        self._engines, self._adapter, self.turns = RunnerCache(), Adapter(), Turns()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a checkpoint of this module, or a plain one of its base classifier. Warns where it changes sigma."""
        ours, plain = (sum(name in each for name in state_dict) for each in (self.state_dict(), self.base.state_dict()))
        if plain > ours or not any(name.startswith("base.") for name in state_dict):
            state_dict = {f"base.{name}": value for name, value in state_dict.items()} | {"sigma": self.sigma}
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        told = state_dict.get(f"{prefix}sigma")
        if isinstance(told, Tensor) and told.tolist() != self.sigma.tolist():
            warn(
                f"sigma is {self.sigma.tolist()} and becomes {told.tolist()} by this state_dict; leave {prefix}sigma "
                "out of it (strict=False) to keep what the classifier was made with"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        sigma, before = self.sigma, {parameter.dtype for parameter in self.base.parameters()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.sigma = sigma.to(self.sigma.device)  # half() must not round sigma
        for dtype in {parameter.dtype for parameter in self.base.parameters()} - before:
            if dtype in HALVES:
                warn(
                    f"the weights of the base classifier are {dtype} now, which fewer runners take: keep them float32, "
                    f"and make the classifier with precision={HALVES[dtype]!r} to compute in it"
                )
        return self
