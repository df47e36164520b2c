"""Quantisation: a trained CIFAR ResNet as a network in integers (docs/integers.md)."""

from .fitting import quantize

__all__ = ["quantize"]
