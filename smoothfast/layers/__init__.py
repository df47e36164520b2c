"""Layers with noise in their weights or activations, and networks made of them.

PNI (He et al. 2019, CVPR, "Parametric noise injection"): W + alpha std(W) xi, alpha learned, std(W) a constant.
CNI (Zheltonozhskii et al. 2020, arXiv 2003.02188; Nemcovsky et al. 2019, arXiv 1911.07198): coloured noise
W + sqrt(|std(W) d| + 1e-8) xi + V z, d and V learned; the 1e-8 keeps the gradient finite at d = 0.

A forward pass draws the noise of a layer once, for the whole batch. It is a pure function of (seed, layer, pass,
element), and passes are counted by the layer itself. Where many passes of a network are made, in training, attacks and
by a `SmoothedClassifier`, all its layers are drawn in one launch (`Bank`), under numbers given from outside.
"""

from .bank import Bank
from .injection import (
    draws_noise,
    inject_noise,
    noise_parameters,
    noisy_layers,
    plain_weights,
    remove_noise,
    scale_noise,
    without_noise,
)
from .noisy import (
    CNI,
    KINDS,
    PNI,
    ActivationNoise,
    CNIConv2d,
    CNILinear,
    PNIConv2d,
    PNILinear,
    WeightNoise,
    bank_of,
)

__all__ = [
    "CNI",
    "KINDS",
    "PNI",
    "ActivationNoise",
    "Bank",
    "CNIConv2d",
    "CNILinear",
    "PNIConv2d",
    "PNILinear",
    "WeightNoise",
    "bank_of",
    "draws_noise",
    "inject_noise",
    "noise_parameters",
    "noisy_layers",
    "plain_weights",
    "remove_noise",
    "scale_noise",
    "without_noise",
]
