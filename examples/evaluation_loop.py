"""A smoothed classifier in the evaluation loop of a timm model: two lines change.

python evaluation_loop.py imagenet/val --model resnet18.a1_in1k --weights resnet18.safetensors
"""

import argparse

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import smoothfast as sf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", help="a safetensors or torch file")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()

    model = timm.create_model(asked.model, num_classes=asked.classes).eval()
    if asked.weights is not None:
        sf.weights.read_weights(asked.weights).load_into(model)
    config = resolve_model_data_config(model)

    # Changed: noise is added to images in 0..1, so normalisation moves from the transform into the smoothed classifier.
    transform = create_transform(**config, is_training=False, normalize=False)
    model = sf.SmoothedClassifier(model, asked.sigma, samples=asked.samples, normalize=(config["mean"], config["std"]))

    images = ImageFolder(asked.folder, lambda_to_float(transform))
    right = 0
    with torch.no_grad():
        for batch, labels in DataLoader(images, batch_size=asked.batch):
            right += int((model(batch).argmax(1) == labels).sum())
    print(f"{len(images)} images, right under smoothing: {right / len(images):.3f}")


def lambda_to_float(transform):
    """timm leaves bytes where it does not normalise; images in 0..1 do as well."""

    def converted(image):
        pixels = transform(image)
        return pixels / 255 if pixels.dtype == torch.uint8 else pixels

    return converted


if __name__ == "__main__":
    main()
