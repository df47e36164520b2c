"""CUDA graphs: a pass that is captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[], Tensor]
"""A pass over what is in the buffers, to logits."""


def capture(forward: Step, device: torch.device) -> tuple[Step, str]:
    """A function as one CUDA graph that is replayed; as it is where it cannot be captured, and why.

    Its inputs and outputs stay in place, the returned tensor included: clone what is to outlive the next call.
    """
    if device.type != "cuda":
        return forward, f"none on {device.type}"
    broke: RuntimeError | None = None
    try:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # which makes its device the current one
            forward()  # what libraries set up at a first call must not be captured
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    logits = forward()
                except RuntimeError as error:
                    broke = error  # what ends the capture complains too, and would hide it
                    raise
        torch.cuda.current_stream(device).wait_stream(stream)
    except RuntimeError as error:
        broke = broke or error
        if isinstance(broke, torch.OutOfMemoryError):
            raise broke from None
        return forward, f"not captured: {str(broke).splitlines()[0]}"

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay, "captured"
