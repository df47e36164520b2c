"""An image classifier of transformers, certified.

    python hugging_face.py ./vit-base pictures --sigma 0.25

The first is a folder that `save_pretrained` has written, or a name in the local cache. A network that never saw noise
is right about by chance under it (docs/your-model.md).
"""

import argparse

import smoothfast as sf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pictures", help="a folder of images for each class, in the order of the model's classes")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--images", type=int, default=8)
    asked = parser.parse_args()

    from transformers import AutoImageProcessor, AutoModelForImageClassification

    network = AutoModelForImageClassification.from_pretrained(asked.model).eval()
    processor = AutoImageProcessor.from_pretrained(asked.model)
    side = network.config.image_size
    source = sf.data.load(f"folder:{asked.pictures}", "test", side, side)
    chosen = range(0, len(source), max(1, len(source) // asked.images))

    # `.logits` of what it returns is found, and pixels are normalised after the noise.
    smoothed = sf.SmoothedClassifier(network, asked.sigma, normalize=(processor.image_mean, processor.image_std))
    for index in chosen:
        image, label = source[index]
        found = smoothed.certify(image[None], n=asked.n, image_ids=[index])
        answer = "abstained" if found.labels[0] < 0 else network.config.id2label[int(found.labels[0])]
        print(f"{index}: {answer} within {float(found.radii[0]):.3f}, labelled {label}; sound: {found.sound}")


if __name__ == "__main__":
    main()
