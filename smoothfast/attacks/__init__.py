"""Attacks on base and smoothed classifiers, called as torchattacks calls them: `adversarial = EPGD(model)(images,
labels)`.

attack.py        what all attacks share: the model, labels or targets, samples, counts
gradient.py      one loop: FGSM, PGD, EPGD, SmoothAdvPGD, MultiTargetedPGD
minimum_norm.py  the smallest perturbation: DDN, CW
black_box.py     without gradients: NAttack, Square
tanh_space.py    pixels as numbers of any size, for CW and NAttack
transfer.py      crafted on one model, evaluated on another: Transfer
"""

from .attack import Attack
from .black_box import NAttack, Square
from .gradient import EPGD, FGSM, PGD, MultiTargetedPGD, SmoothAdvPGD
from .minimum_norm import CW, DDN
from .transfer import Transfer

__all__ = [
    "CW",
    "DDN",
    "EPGD",
    "FGSM",
    "PGD",
    "Attack",
    "MultiTargetedPGD",
    "NAttack",
    "SmoothAdvPGD",
    "Square",
    "Transfer",
]
