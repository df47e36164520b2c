"""Attacks of torchattacks, foolbox and ART on a smoothed classifier, and an honest count of what they achieve.

    python attacks_of_others.py --images 50 --steps 7

Each gets gradients through `model.differentiable()`. What they report as success is one noisy evaluation; fresh votes
count.
"""

import argparse

import torch

import smoothfast as sf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--votes", type=int, default=200)
    asked = parser.parse_args()

    data = sf.data.demo()
    images, labels = data.images[: asked.images] / 255, data.labels[: asked.images]
    base = sf.models.resnet20()
    sf.weights.read_weights(sf.weights.DEMO).load_into(base)
    model = sf.SmoothedClassifier(base.eval(), 0.25, num_classes=10, normalize=sf.models.CIFAR10_STATISTICS)
    soft, eps, alpha = model.differentiable(samples=asked.samples), 8 / 255, 2 / 255

    made = {"nothing": images, "EPGD of this package": sf.attacks.EPGD(model, eps, alpha, asked.steps)(images, labels)}

    import torchattacks

    made["torchattacks PGD"] = torchattacks.PGD(soft, eps, alpha, asked.steps)(images, labels)

    import foolbox

    wrapped = foolbox.PyTorchModel(soft, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=alpha, steps=asked.steps)
    made["foolbox LinfPGD"] = attack(wrapped, images, labels, epsilons=eps)[1]

    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        soft, torch.nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescent(classifier, eps=eps, eps_step=alpha, max_iter=asked.steps, verbose=False)
    made["ART ProjectedGradientDescent"] = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))

    for name, adversarial in made.items():
        print(f"{name}: {sf.evaluation.accuracy(model.votes(adversarial, asked.votes), labels)}")


if __name__ == "__main__":
    main()
