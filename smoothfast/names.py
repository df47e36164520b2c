"""Names that users give, by argument. Known without torch, so that the command line can show and refuse them at once.

What each name stands for is where it is at home: a dictionary there has the same keys, which a test compares.
"""

from __future__ import annotations

RUNNERS = ("auto", "eager", "compiled", "openvino", "fused")  # runners
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")  # runners.precision
NOISES = ("lattice", "gaussian")  # ops.laws
VOTINGS = ("prediction", "weighted", "soft", "logit")  # voting
NORMS = ("linf", "l2")  # ops.reference, attacks
LOSSES = ("ce", "margin", "dlr")  # losses
ATTACKS = (  # runs.attack
    "fgsm", "pgd", "epgd", "smoothadv", "multi-targeted", "ddn", "cw", "nattack", "square", "pgd-legacy",
)  # fmt: skip
TARGETS = ("none", "random", "least-likely")  # runs.attack
SOURCES = ("smoothed", "base")  # runs.attack
SHARDS = ("images", "samples")  # runs.shards
BOUNDS = ("multiclass", "cohen")  # statistics.bounds
CERTIFY_METHODS = ("fixed", "sequential", "tolerance", "grid")  # procedures
PREDICT_METHODS = ("fixed", "sequential")  # procedures
FORMATS = ("markdown", "latex", "csv", "json")  # runs.tables
DATA = ("demo", "cifar10", "cifar100", "imagenet", "folder")  # data
WEIGHT_NOISES = ("pni", "cni")  # layers
MODELS = ("resnet20", "resnet20b", "resnet32", "resnet56", "resnet110", "resnet110b", "wrn34_10")  # models
