"""The engine: one base function, micro-batches of its replicas, and what they add up to by image.

adapter.py    the base classifier as people have it: `Adapter`
function.py   what runs: `BaseFunction`
votes.py      from images to votes, as many as procedures ask for: `Engine`
gradients.py  from images to losses and mean gradients, for attacks: `Gradients`
averages.py   from images to mean scores that autograd can go through: `Average`
schedule.py, blocks.py             which samples are the rows of which micro-batch
lanes.py, buffers.py, graphs.py    where micro-batches are computed
noisy_network.py                   a base classifier that has noise of its own
"""

from .adapter import Adapter
from .averages import Average
from .function import BaseFunction, default_micro_batch
from .gradients import Gradients
from .noisy_network import NoisyNetwork
from .schedule import Job
from .votes import Engine

__all__ = [
    "Adapter",
    "Average",
    "BaseFunction",
    "Engine",
    "Gradients",
    "Job",
    "NoisyNetwork",
    "default_micro_batch",
]
