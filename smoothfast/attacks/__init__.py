"""Attacks on base and smoothed classifiers, called as torchattacks calls them: `adversarial = EPGD(model)(images,
labels)`.

attack.py        what all attacks share: the model, labels or targets, samples, counts
gradient.py      one loop: FGSM, PGD, EPGD, SmoothAdvPGD, MultiTargetedPGD
minimum_norm.py  the smallest perturbation: DDN, CW
black_box.py     without gradients: NAttack, Square
transfer.py      crafted on one model, evaluated on another: Transfer
"""

from .attack import Attack
from .gradient import EPGD, FGSM, PGD, MultiTargetedPGD, SmoothAdvPGD

__all__ = ["EPGD", "FGSM", "PGD", "Attack", "MultiTargetedPGD", "SmoothAdvPGD"]
