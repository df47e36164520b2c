"""Settings by name: as published, for CIFAR-10 (docs/training.md says what differs), and short ones for few cores."""

from __future__ import annotations

from dataclasses import replace

from ..normalization import CIFAR10_STATISTICS
from .settings import Settings

_SGD = Settings(
    recipe="clean", sigma=0.0, normalize=CIFAR10_STATISTICS, schedule="multi-step", milestones=(1,), learning_rate=0.1,
    nesterov=False,
)  # fmt: skip

# Code of Cohen et al. 2019 (locuslab/smoothing), experiments.MD and train.py; ResNet-110. sigma 0.12 to 1.
_COHEN = replace(
    _SGD, recipe="gaussian", sigma=0.25, epochs=90, batch=400, milestones=(30, 60), weight_decay=1e-4
)  # fmt: skip

_JEONG = replace(_COHEN, epochs=150, batch=256, milestones=(50, 100))

# Code of Nemcovsky et al. 2019 (yanemcovsky/SIAM), train.py, with their PGD of 7 steps; ResNet-20.
_SIAM = replace(
    _SGD, recipe="adversarial", epochs=400, batch=256, milestones=(100, 200, 300), nesterov=True, weight_decay=1e-4,
    clip_norm=0.05, validation=2500, select="best",
)  # fmt: skip

# arXiv 1911.07198, section 4.1, goes on from CNI-W networks. Neither length nor learning rate is known: these are ours.
_FINETUNE = replace(_SIAM, epochs=20, schedule="cosine", milestones=(), learning_rate=0.01)

# Code of Zhang et al. 2019 (yaodongyu/TRADES), which counts epochs from 1; WRN-34-10. Images are not normalised.
_TRADES = replace(
    _SGD, recipe="trades", normalize=None, epochs=76, batch=128, milestones=(74,), weight_decay=2e-4, beta=6.0,
    eps=0.031, alpha=0.007, steps=10,
)  # fmt: skip

# What fits a few cores is ours.
_QUICK = Settings(normalize=CIFAR10_STATISTICS)
_QUICK_ATTACKED = replace(
    _QUICK, recipe="adversarial", sigma=0.0, epochs=15, batch=128, learning_rate=0.2, validation=2500, select="best"
)
_QUICK_COPIES = replace(_QUICK, epochs=15, batch=128, learning_rate=0.2, train_samples=2)

PRESETS: dict[str, Settings] = {
    "cohen": _COHEN,
    "siam-adversarial": _SIAM,
    # The step of CNI-I+W, eq. 23. Its sigma in training is unknown; 0.09 is where it smooths best in the paper, 0.37 of
    # normalised images.
    "cni-i+w-finetune": replace(_FINETUNE, sigma=0.09),
    # "EPGD-converged"; select="worst-clean" is "EPGD-diverged". 8 samples are those of their code.
    "epgd-finetune": replace(_FINETUNE, recipe="epgd", samples=8, select="best-clean"),
    "high-k-finetune": replace(_FINETUNE, steps=56),
    # Code of He et al. 2019 (elliothe/CVPR_2019_PNI), train_cifar.sh and main.py; ResNet-20.
    "pni": replace(
        _SIAM,
        epochs=160,
        batch=128,
        milestones=(80, 120),
        weight_decay=3e-4,
        clip_norm=None,
        eps=0.031,
        alpha=0.01,
        clean_epochs=5,
        validation=0,
        select="last",
    ),
    "trades": _TRADES,
    # Code of Wang et al. 2020 (YisenWang/MART), train_resnet.py, which counts epochs from 1; ResNet-18.
    "mart": replace(
        _TRADES, recipe="mart", epochs=120, milestones=(74, 89, 99), learning_rate=0.01, weight_decay=3.5e-3, beta=5.0
    ),
    # Code of Salman et al. 2019 (Hadisalman/smoothing-adversarial), the example of its README; ResNet-110. Its batches
    # of 256 are taken in two steps.
    "smoothadv": replace(
        _COHEN,
        recipe="smoothadv",
        sigma=0.12,
        epochs=150,
        batch=128,
        milestones=(50, 100),
        eps=0.25,
        steps=10,
        samples=2,
        train_samples=2,
        warmup=10,
    ),
    # Code of Jeong and Shin 2020 (jh-jeong/smoothing-consistency); ResNet-110. Its batches of 256 are taken in two
    # steps. beta is 10 for sigma 0.5 and 1. Stability training is as they compare with it.
    "consistency": replace(_JEONG, recipe="consistency", batch=128, train_samples=2, beta=20.0),
    "stability": replace(_JEONG, recipe="stability", beta=2.0),
    # Code of Jeong et al. 2021 (jh-jeong/smoothmix), EXPERIMENTS.MD, with mix_step 0; ResNet-110.
    "smoothmix": replace(_JEONG, recipe="smoothmix", batch=128, train_samples=2, steps=4, beta=5.0, warmup=10),
    # Code of Zhai et al. 2020 (RuntianZ/macer), main.py; ResNet-110. Images are not normalised.
    "macer": replace(
        _COHEN,
        recipe="macer",
        normalize=None,
        epochs=440,
        batch=64,
        milestones=(200, 400),
        learning_rate=0.01,
        weight_decay=5e-4,
        train_samples=16,
        beta=12.0,
    ),
    "quick-clean": replace(_QUICK, recipe="clean", sigma=0.0, batch=128, learning_rate=0.2),
    "quick-gaussian": _QUICK,
    "quick-adversarial": _QUICK_ATTACKED,
    "quick-trades": replace(_QUICK_ATTACKED, recipe="trades"),
    "quick-mart": replace(_QUICK_ATTACKED, recipe="mart", beta=5.0),
    "quick-smoothadv": replace(
        _QUICK_ATTACKED, recipe="smoothadv", sigma=0.25, eps=0.25, steps=2, samples=2, train_samples=2
    ),
    "quick-stability": replace(_QUICK_COPIES, recipe="stability", beta=2.0),
    "quick-consistency": replace(_QUICK_COPIES, recipe="consistency", beta=10.0),
    "quick-macer": replace(_QUICK_COPIES, recipe="macer", batch=64, train_samples=4, beta=4.0),
    "quick-smoothmix": replace(_QUICK_COPIES, recipe="smoothmix", steps=2, beta=2.0, warmup=2),
    "quick-epgd": replace(_QUICK_ATTACKED, recipe="epgd", sigma=0.1, samples=2),
}
"""Settings by name. Those that end in -finetune go on from trained weights."""
