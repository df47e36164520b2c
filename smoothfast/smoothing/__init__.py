"""Smoothed classifiers: prediction, certification, scores.

classifier.py  `SmoothedClassifier`
soft.py        its twin by mean probabilities, which autograd can go through: `SoftClassifier`
results.py     what predictions and certificates hold, and how they are filled
replays.py     certificates computed anew: `replay`
cohen.py       the API of Cohen et al. 2019, word for word: `Smooth`
"""

from .classifier import SmoothedClassifier
from .cohen import Smooth
from .replays import Replay, replay
from .results import Certificate, Prediction
from .soft import SoftClassifier

__all__ = ["Certificate", "Prediction", "Replay", "Smooth", "SmoothedClassifier", "SoftClassifier", "replay"]
