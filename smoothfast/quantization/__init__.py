"""Quantisation: a trained CIFAR ResNet as a network in integers (docs/integers.md)."""

from .fitting import calibrated, quantize

__all__ = ["calibrated", "quantize"]
