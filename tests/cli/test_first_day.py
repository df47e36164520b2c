"""A newcomer's first day: a network as tutorials have it, trained in plain PyTorch, certified by one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.toys import Run
from torch import nn
from torchvision.transforms.functional import to_pil_image

import smoothfast as sf
from smoothfast.evaluation import base_votes
from smoothfast.runs.logs import read_log

MEAN, STD = (0.47, 0.45, 0.41), (0.25, 0.24, 0.26)
CLASSES = ("airplane", "automobile", "bird", "cat")
NETWORK = """
import torch.nn as nn
import torch.nn.functional as F


class MyCNN(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5, stride=2)
        self.conv2 = nn.Conv2d(16, 32, 5, stride=2)
        self.fc = nn.Linear(32 * 5 * 5, num_classes)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return self.fc(x.view(-1, 32 * 5 * 5))
"""
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:the base classifier is adapted"),
]


def write_folder(folder: Path) -> None:
    """Writes images of four classes, ten of each, as PNG and JPEG files in turn."""
    demo = sf.data.demo()
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(demo.images[demo.labels == label][:10]):
            kind = {"quality": 95} if number % 2 else {}
            to_pil_image(image).save(folder / name / f"{number}.{'jpg' if kind else 'png'}", **kind)


def trained(images: torch.Tensor, labels: torch.Tensor, steps: int) -> nn.Module:
    """Trains under noise by the loop that everybody writes."""
    space: dict[str, type[nn.Module]] = {}
    exec(NETWORK, space)
    torch.manual_seed(0)
    net = space["MyCNN"]()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(steps):
        noisy = images / 255 + 0.25 * torch.randn(images.shape)
        loss = nn.functional.cross_entropy(net((noisy - mean) / std), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize(
    "steps",
    [150, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],  # a second, minutes
)
def test_from_a_network_and_a_folder_to_certificates(run: Run, tmp_path: Path, steps: int) -> None:
    write_folder(tmp_path / "mine")
    (tmp_path / "mynet.py").write_text(NETWORK)
    source = sf.data.load("folder:mine")
    images, labels = (torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*source, strict=True))
    net = trained(images, labels, steps)
    torch.save(net.state_dict(), "my.pt")

    model = sf.SmoothedClassifier(net, 0.25, normalize=(MEAN, STD))
    right = int((base_votes(model, images).argmax(1) == labels).sum())
    assert right >= 32  # of 40: the network has learned
    wanted = model.certify(images[::5], n=400, image_ids=range(0, 40, 5))

    statistics = "/".join(",".join(map(str, part)) for part in (MEAN, STD))
    told = "--model", "mynet:MyCNN", "--weights", "my.pt", "--data", "folder:mine", "--normalize", statistics
    result = run("certify", *told, "--n", 400, "--skip", 5, "--out", "run.tsv", "--json")
    assert result.status == 0, result.err
    assert "classes: 0 airplane, 1 automobile, 2 bird, 3 cat" in result.err
    assert json.loads(result.out)["images"] == 8
    log = read_log(tmp_path / "run.tsv")
    assert log.label.tolist() == labels[::5].tolist()
    assert log.predict.tolist() == wanted.labels.tolist()
    torch.testing.assert_close(torch.tensor(log.radius), wanted.radii, atol=1e-6, rtol=0)
    assert log.correct.mean() > 0.7

    blind = run("predict", *told[:-2], "--n", 50, "--max", 4, "--out", "blind.tsv")
    assert "pass --normalize as in training" in blind.err
