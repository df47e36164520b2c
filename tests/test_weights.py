"""Weights files of both kinds, the names that wrappers leave, and files that are refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import smoothfast as sf
from smoothfast import models
from smoothfast.layers import noise_parameters
from smoothfast.layouts import statistics_by
from smoothfast.models import Normalize, resnet20
from smoothfast.normalization import CIFAR10_COHEN_STATISTICS, IMAGENET_STATISTICS
from smoothfast.weights import Weights, read_weights

pytestmark = pytest.mark.usefixtures("one_thread")


class Tiny(nn.Module):
    """A network with every kind of state: weights, running statistics, an integer."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, num_classes)


def trained() -> Tiny:
    """A network in which every number differs from those of a new one."""
    network = Tiny()
    with torch.no_grad():
        for number, value in enumerate(network.state_dict().values()):
            value.copy_(torch.full_like(value, number + 2))
    return network


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def write(path: Path, state: dict[str, Any], about: dict[str, str] | None = None) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path, about)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(params=["weights.safetensors", "weights.pt", "checkpoint.pth.tar"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.fixture
def torch_file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pt"


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "module.", "1.", "base.", "_orig_mod.", "1.module.", "module.1.", "module.base._orig_mod.1."]
)
def test_names_of_wrappers_are_understood(path: Path, prefix: str) -> None:
    network = Tiny()
    read_weights(write(path, prefixed(trained().state_dict(), prefix))).load_into(network)
    assert same(network, trained())


def test_the_file_is_identified_by_its_bytes(path: Path) -> None:
    write(path, trained().state_dict())
    assert read_weights(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: nn.Sequential(nn.Identity(), network)])
@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict", "model_ema", "ema"])
def test_checkpoints_of_training_programs(torch_file: Path, wrap: Callable[[nn.Module], nn.Module], key: str) -> None:
    state = wrap(trained()).state_dict()
    network = Tiny()
    read_weights(write(torch_file, {"epoch": 90, key: state, "optimizer": {"state": {}}})).load_into(network)
    assert same(network, trained())


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("weights.pt", ""),
        ("weights.pt", "module."),
        ("weights.pt", "base."),
        ("weights.pt", "_orig_mod."),
        ("weights.safetensors", ""),
    ],
    indirect=["path"],
)
def test_a_normalising_layer_in_front_is_not_the_network(path: Path, prefix: str) -> None:
    wrapped = nn.Sequential(Normalize([0.1] * 3, [0.2] * 3), trained())
    network = Tiny()
    read_weights(write(path, prefixed(wrapped.state_dict(), prefix))).load_into(network)
    assert same(network, trained())


@pytest.mark.parametrize("path", ["weights.safetensors", "weights.pt"], indirect=True)
@pytest.mark.parametrize("first", [nn.Conv2d(3, 2, 3), Normalize([0.1], [0.2])])
def test_a_sequential_network_keeps_its_layer_0(path: Path, first: nn.Module) -> None:
    network, saved = nn.Sequential(first, Tiny()), nn.Sequential(first, trained())
    read_weights(write(path, saved.state_dict())).load_into(network)
    assert same(network, saved)


def test_a_compiled_network_on_either_side(path: Path) -> None:
    network = torch.compile(Tiny(), backend="eager")
    read_weights(write(path, torch.compile(trained(), backend="eager").state_dict())).load_into(network)
    assert same(network._orig_mod, trained())


@pytest.mark.parametrize("name", ["model", "net", "network", "backbone"])
def test_networks_that_are_part_of_another(name: str) -> None:
    network = Tiny()
    found = Weights(prefixed(trained().state_dict(), f"module.{name}.")).fill(network)
    assert same(network, trained())
    assert (found.behind, found.statistics) == (False, None)


@pytest.mark.parametrize(
    "wrapped", [lambda base: sf.SmoothedClassifier(base, 0.25, 3), lambda base: AveragedModel(nn.DataParallel(base))]
)
def test_what_stands_beside_the_network(tmp_path: Path, wrapped: Callable[[nn.Module], nn.Module]) -> None:
    """The sigma of a smoothed classifier, the count of an average."""
    network = Tiny()
    path = write(tmp_path / "weights.pt", wrapped(trained()).state_dict())
    read_weights(str(path)).load_into(network)
    assert same(network, trained())


def test_counters_that_old_batch_norms_lack() -> None:
    network = Tiny()
    Weights({name: value for name, value in trained().state_dict().items() if "num_batches" not in name}).load_into(
        network
    )
    assert torch.equal(network.bn.running_var, trained().bn.running_var)
    assert network.bn.num_batches_tracked == 0


def renamed(state: dict[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    for ours, theirs in pairs:
        state = {re.sub(ours, theirs, name): value for name, value in state.items()}
    return state


STAGES = (r"^stage(\d)", r"layer\1")
# Layouts as programs of the field write them: the network, its names there, the keys around, and what is in front.
LAYOUTS: dict[str, tuple[Callable[[], nn.Module], Callable[[dict[str, Tensor]], dict[str, Any]]]] = {
    "cohen": (
        lambda: models.ResNet(8, 3, "B"),
        lambda state: {
            "epoch": 90,
            "arch": "cifar_resnet110",
            "state_dict": prefixed(renamed(state, STAGES, ("shortcut", "downsample")), "1."),
            "optimizer": {"state": {}, "param_groups": []},
        },
    ),
    "kuangliu": (
        lambda: models.ResNet(8, 3, "B"),
        lambda state: {"net": prefixed(renamed(state, STAGES, (r"^fc", "linear")), "module."), "acc": 95.1, "epoch": 7},
    ),
    "akamaster": (
        lambda: models.ResNet(8, 3),
        lambda state: {"state_dict": prefixed(renamed(state, STAGES, (r"^fc", "linear")), "module."), "best_prec1": 91},
    ),
    "robustness": (
        lambda: models.ResNet(8, 3),
        lambda state: {
            "model": prefixed(state, "module.model.")
            | prefixed(state, "module.attacker.model.")
            | {"module.normalizer.new_mean": torch.full((3, 1, 1), 0.5)}
            | {"module.normalizer.new_std": torch.full((3, 1, 1), 0.25)},
            "epoch": 1,
        },
    ),
    "trades": (
        lambda: models.WideResNet(10, 1, 3),
        lambda state: prefixed(
            renamed(
                state, (r"^stage(\d)", r"block\1.layer"), ("shortcut", "convShortcut"), (r"^bn\.", "bn1.")
            ),
            "module.",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_field(tmp_path: Path, layout: str) -> None:
    make, written = LAYOUTS[layout]
    saved, network = make(), make()
    weights = read_weights(write(tmp_path / "checkpoint.pth.tar", written(saved.state_dict())))
    found = weights.fill(network)
    assert same(network, saved)
    assert weights.rows == 3
    assert found.behind == (layout in ("cohen", "robustness"))
    assert found.statistics == (((0.5,) * 3, (0.25,) * 3) if layout == "robustness" else None)
    assert weights.architecture == ("cifar_resnet110" if layout == "cohen" else "")


@pytest.mark.parametrize("names", [("means", "sds"), ("mean", "std")])
def test_statistics_of_a_layer_in_front(names: tuple[str, str]) -> None:
    front = {f"0.{name}": torch.tensor(values) for name, values in zip(names, CIFAR10_COHEN_STATISTICS, strict=True)}
    found = Weights(front | prefixed(trained().state_dict(), "1.")).fill(Tiny())
    assert found.statistics == CIFAR10_COHEN_STATISTICS


@pytest.mark.parametrize("odd", [[0.5] * 17, [1e9] * 3, [0.0] * 3, [0.2] * 2])
def test_odd_statistics_are_none(odd: list[float]) -> None:
    front = {"0.mean": torch.full((3,), 0.5), "0.std": torch.tensor(odd)}
    found = Weights(front | prefixed(trained().state_dict(), "1.")).fill(Tiny())
    assert (found.behind, found.statistics) == (True, None)


def test_architectures_of_cohen() -> None:
    assert statistics_by("cifar_resnet110") == CIFAR10_COHEN_STATISTICS
    assert statistics_by("resnet50") == IMAGENET_STATISTICS
    assert statistics_by("vit") is statistics_by("") is None


def test_settings_of_the_training_run(tmp_path: Path) -> None:
    settings = {"sigma": 0.25, "normalize": None}
    about = {"model": "resnet20", "settings": json.dumps(settings)}
    weights = read_weights(write(tmp_path / "weights.safetensors", trained().state_dict(), about))
    assert weights.about == about
    assert weights.settings == settings


def test_files_without_metadata_have_no_settings(path: Path) -> None:
    weights = read_weights(write(path, trained().state_dict()))
    assert weights.about == {}
    assert weights.settings == {}


@pytest.mark.parametrize("text", ["[1, 2]", "3", "free text"])
def test_settings_that_another_program_wrote_are_not_ours(text: str) -> None:
    assert Weights({}, {"settings": text}).settings == {}


# ---- what is refused -------------------------------------------------------------------------------------------------


class Code:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(torch_file: Path, legacy: bool) -> None:
    made = torch_file.with_name("made")
    state = {"state_dict": trained().state_dict(), "extra": Code(made)}
    torch.save(state, torch_file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"weights\.pt cannot be read with weights_only=True"):
        read_weights(torch_file)
    assert not made.exists()
    torch.load(torch_file, weights_only=False)
    assert made.exists()  # it would have run


def test_a_whole_pickled_network_is_refused(torch_file: Path) -> None:
    torch.save(nn.Linear(2, 2), torch_file)
    with pytest.raises(ValueError, match=r"weights_only=True: GLOBAL .*save\(model\.state_dict\(\), NEW\)$"):
        read_weights(torch_file)


@pytest.mark.parametrize(
    "content",
    [{}, [torch.zeros(1)], torch.zeros(1), {"state_dict": {}}, {"fc.weight": 3.0}, {"epoch": 1, "net": OrderedDict()}],
)
def test_a_file_without_a_state_dict(torch_file: Path, content: Any) -> None:
    torch.save(content, torch_file)
    with pytest.raises(ValueError, match=r"weights\.pt holds no state dict of tensors"):
        read_weights(torch_file)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file(path: Path, share: float) -> None:
    content = write(path, trained().state_dict()).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=str(path)):
        read_weights(path)


def test_noise_in_a_file_is_an_error_about_the_file(torch_file: Path) -> None:
    rng = random.Random(0)
    for size in range(100):
        torch_file.write_bytes(b"\x80\x02" + rng.randbytes(size))
        with pytest.raises(ValueError, match=str(torch_file)):
            read_weights(torch_file)


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(path)):
        read_weights(path)


def test_other_numbers_of_classes() -> None:
    with pytest.raises(ValueError, match=r"fc\.weight is \(3, 2\), the model has \(10, 2\); fc\.bias is \(3,\)"):
        Weights(trained().state_dict()).load_into(Tiny(10))


def test_what_was_looked_for_and_what_was_found_stand_in_one_short_line() -> None:
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        Weights(torchvision.models.resnet18().state_dict(), architecture="resnet18").load_into(resnet20())
    said = str(caught.value)
    assert "stage1.0.conv1.weight" in said
    assert "layer1.0.conv1.weight" in said
    assert "arch 'resnet18'" in said
    assert len(said) < 400
    with pytest.raises(ValueError, match=r"its shortcuts are 1x1 convolutions, as those of resnet20b"):
        Weights(models.resnet20b().state_dict()).load_into(resnet20())


def test_a_checkpoint_that_holds_itself(torch_file: Path) -> None:
    state: dict[str, Any] = {}
    state["model"] = state
    torch.save(state, torch_file)
    with pytest.raises(ValueError, match="it changes a value that stands in several places"):
        read_weights(torch_file)


def test_missing_and_extra_names() -> None:
    state = trained().state_dict()
    state["head.bias"] = state.pop("fc.bias")
    network, untouched = Tiny(), Tiny()
    untouched.load_state_dict(network.state_dict())
    with pytest.raises(ValueError, match=r"do not fit the model: fc\.bias is missing; head\.bias is not in the model$"):
        Weights(state).load_into(network)
    assert same(network, untouched)  # all or nothing


def test_many_faults_are_counted() -> None:
    with pytest.raises(ValueError, match=r"conv\.weight, bn\.weight, bn\.bias and 5 more are missing$"):
        Weights({}).load_into(Tiny())


def test_a_noisy_network_takes_weights_of_the_plain_one_and_its_own() -> None:
    plain, noisy = resnet20(), models.load("resnet20+cni", 10)
    strengths = [strength.detach().clone() for strength in noise_parameters(noisy)]
    Weights(plain.state_dict()).load_into(noisy)
    assert torch.equal(noisy.conv1.weight, plain.conv1.weight)
    assert all(torch.equal(*pair) for pair in zip(noise_parameters(noisy), strengths, strict=True))
    noisy.conv1.diagonal.data.fill_(0.5)
    again = models.load("resnet20+cni", 10)
    Weights({f"module.{name}": value for name, value in noisy.state_dict().items()}).load_into(again)
    assert torch.equal(again.conv1.diagonal, noisy.conv1.diagonal)
    part = {name: value for name, value in noisy.state_dict().items() if name != "conv1.factors"}
    with pytest.raises(ValueError, match=r"conv1\.factors is missing"):
        Weights(part).load_into(again)
    with pytest.raises(ValueError, match="are not in the model"):
        Weights(noisy.state_dict()).load_into(plain)


def test_a_wrapper_of_any_name_is_understood(path: Path) -> None:
    network = Tiny()
    read_weights(write(path, prefixed(trained().state_dict(), "encoder."))).load_into(network)
    assert same(network, trained())


@pytest.mark.parametrize("best", [np.float64(0.9), np.float32(0.9), np.int64(3)], ids=lambda number: number.dtype.name)
def test_numbers_of_numpy_beside_the_weights(torch_file: Path, best: Any) -> None:
    torch.save({"state_dict": trained().state_dict(), "best": best}, torch_file)
    read_weights(torch_file).load_into(network := Tiny())
    assert same(network, trained())
