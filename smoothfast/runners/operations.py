"""The multiplications and additions of a network, counted while it runs."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry  # a quarter of a second of imports


def operations(network: nn.Module, images: Tensor) -> float:
    """Counts the operations of a network on a batch by the formulas of torch.

    `FlopCounterMode` imports dynamo, which takes two seconds: it is for networks that need dynamo themselves.
    """
    if "torch._dynamo" not in sys.modules:
        with suppress(Exception), _Operations() as own:  # of dynamo, where a network calls the likes of torch.cond
            network(images)
            return own.total
    with FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops()


class _Operations(TorchDispatchMode):
    """Counts the operations of what runs within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tells torch not to wrap the method below in one that imports dynamo."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        with self:  # in inference mode, layers come whole
            result = function.decompose(*args, **keywords)
        if result is not NotImplemented:
            return result
        result = function(*args, **keywords)
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **keywords, out_val=result)
        return result
