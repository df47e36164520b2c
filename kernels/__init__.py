"""Triton twins of the ops, installed as `smoothfast.kernels`: one file per op under the stem of its schema."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Makes the device of a tensor the current one, which Triton launches on; its interpreter takes CPU tensors."""
    if tensor.device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(tensor.device).device_of(tensor)
