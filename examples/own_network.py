"""A network of your own and a folder of images, from training under noise to a table of certified accuracy.

    python own_network.py pictures/train pictures/test --epochs 30

Each folder has a folder of images for every class; --side is what they are resized and cropped to.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import smoothfast as sf
from smoothfast.training import Settings, Trainer

SIGMA, RADII = 0.25, (0.0, 0.25, 0.5)
STATISTICS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def network(classes: int) -> nn.Module:
    """Yours: normalised images [B, 3, H, W] to logits."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("own"))
    asked = parser.parse_args()

    images = sf.data.in_memory(sf.data.load(f"folder:{asked.train}", "train", asked.side, asked.side))
    torch.manual_seed(0)
    model = network(int(images.labels.max()) + 1)
    settings = Settings(
        recipe="gaussian", sigma=SIGMA, normalize=STATISTICS, epochs=asked.epochs, batch=asked.batch, learning_rate=0.1
    )
    done = Trainer(model, images, settings, asked.out).fit(resume=True)
    print(f"accuracy under noise in training: {done['train_accuracy']:.3f}")

    test = sf.data.in_memory(sf.data.load(f"folder:{asked.test}", "test", asked.side, asked.side))
    smoothed = sf.SmoothedClassifier(model, SIGMA, normalize=STATISTICS)
    found = smoothed.certify(test.images, n=asked.n, method="grid", radii=RADII)
    right = found.labels == test.labels
    for radius in RADII:
        print(f"certified at {radius}: {(right & (found.radii >= radius)).double().mean():.3f}")
    print(f"samples an image: {found.samples.double().mean():.0f}; sound: {found.sound}")


if __name__ == "__main__":
    main()
