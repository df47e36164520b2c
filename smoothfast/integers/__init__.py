"""Networks in integers, whose logits are the same bits on every processor: what they compute, and their files."""

from .files import save
from .network import IntegerBlock, IntegerConvolution, IntegerResNet

__all__ = ["IntegerBlock", "IntegerConvolution", "IntegerResNet", "save"]
