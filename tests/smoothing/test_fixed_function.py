"""The base classifier as one fixed function: what changes it is seen, and what is none is not called sound."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.classifiers import Pixels
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import smoothfast as sf
from smoothfast.modules import weights_sha256
from smoothfast.procedures import FixedCertify
from smoothfast.runners.choice import fingerprint
from smoothfast.runs.certify import log_run
from smoothfast.runs.logs import environment_of

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 5
SHAPE = 3, 4, 4
IMAGES = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make(base: nn.Module, **options: Any) -> sf.SmoothedClassifier:
    options = {"sigma": 0.3, "num_classes": CLASSES, "precision": "fp32", "max_batch": 32, "runner": "eager"} | options
    return sf.SmoothedClassifier(base.eval(), **options)


def found(base: nn.Module, **options: Any) -> tuple[str, bool]:
    certificate = make(base, **options).certify(IMAGES, n0=5, n=40)
    return certificate.meta["row_function"], certificate.sound


# ---- A. a kept classifier is that of the network of the moment -------------------------------------------------------


class Network(nn.Module):
    """A linear layer on pixels turned round by a buffer that no checkpoint holds."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.eye(48), persistent=False)
        self.linear, self.last = nn.Linear(48, CLASSES), nn.Sequential(nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.linear(x.flatten(1) @ self.order))


def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Network().eval()


def write(tensor: Tensor, values: Tensor) -> None:
    tensor.data.copy_(values)  # which leaves the version of a parameter as it is


def turned(base: Network) -> None:
    base.order.copy_(base.order.roll(7, 0))


def permuted(base: Network) -> None:
    write(base.linear.weight, base.linear.weight[[1, 2, 3, 4, 0]])


def negated(base: Network) -> None:
    write(base.linear.weight, -base.linear.weight)


def moved_along_a_bias(base: Network) -> None:
    write(base.linear.bias, base.linear.bias.flip(0))


def hooked_anew(base: Network) -> None:
    (hook,) = base.last._forward_hooks
    del base.last._forward_hooks[hook]
    base.last.register_forward_hook(lambda module, inputs, out: out.roll(1, 1))


def exchanged(base: Network) -> None:
    base.last[0] = nn.Threshold(0.1, -9.0)
    gc.collect()  # the module before is gone, and its id may be that of another


def overridden(base: Network) -> None:
    base.linear.forward = lambda x: -nn.Linear.forward(base.linear, x)  # type: ignore[method-assign]


CHANGES = [turned, permuted, negated, moved_along_a_bias, hooked_anew, exchanged, overridden]
Changes = list[Callable[[Network], None]]


@pytest.mark.parametrize(
    ("runner", "changes"),
    [("eager", CHANGES), ("compiled", [turned]), ("openvino", [permuted])],  # compilers make each anew: 2 s
    ids=["eager", "compiled", "openvino"],
)
def test_what_changes_the_network_changes_the_answers(runner: str, changes: Changes) -> None:
    if runner == "openvino":
        pytest.importorskip("openvino")
    base = network()
    base.last.register_forward_hook(lambda module, inputs, out: out)
    smoothed = make(base, runner=runner)
    last = smoothed.votes(IMAGES, 200)
    for change in changes:
        change(base)
        votes = smoothed.votes(IMAGES, 200)
        assert not torch.equal(votes, last), change
        if runner == "eager":
            assert torch.equal(votes, make(base).votes(IMAGES, 200)), change
        last = votes


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: Callable[[Network], None]) -> None:
    base = network()
    base.last.register_forward_hook(lambda module, inputs, out: out)
    before = fingerprint(base, "eager")
    assert before == fingerprint(base, "eager")
    change(base)
    assert before != fingerprint(base, "eager")


def test_a_hook_on_all_modules_is_seen() -> None:
    base = network()
    before = fingerprint(base, "eager")
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, out: None)
    try:
        assert before != fingerprint(base, "eager")
    finally:
        handle.remove()
    assert before == fingerprint(base, "eager")


def test_a_network_that_becomes_no_function_is_no_longer_sound() -> None:
    class Mixing(nn.Module):
        share: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("share", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.share * x.mean(0)).flatten(1)[:, :CLASSES]

    base = Mixing()
    smoothed = make(base)
    assert smoothed.certify(IMAGES, n0=5, n=40).sound
    base.share.data.fill_(1.0)
    assert not smoothed.certify(IMAGES, n0=5, n=40).sound


# ---- B. scales that come from the batch ------------------------------------------------------------------------------


def by_range(x: Tensor) -> Tensor:
    scale = x.abs().amax() / 7
    return (x / scale).round() * scale


CLAMPED = "4 bits of what was clamped"
BATCHWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "4 bits by the largest": by_range,
    "over the largest": lambda x: x / x.amax(),
    CLAMPED: lambda x: by_range(x.clamp(-1, 1)),
    "above the smallest": lambda x: x - x.amin(),
    "by the brightest image": lambda x: x / x.flatten(1).mean(1).amax().clamp(min=1e-3),
    "darkest image taken away": lambda x: x - x[x.flatten(1).mean(1).argmin()],
    "by the smallest channel": lambda x: x / x.mean((0, 2, 3)).amin().clamp(min=0.01),
}


class After(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.linear = change, network().linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.change(x).flatten(1))


@pytest.mark.parametrize(("sigma", "clip"), [(0.02, False), (0.02, True), (0.5, False)])
@pytest.mark.parametrize("kind", [kind for kind in BATCHWISE if kind != CLAMPED])
def test_a_scale_from_the_batch_is_found_out(kind: str, sigma: float, clip: bool) -> None:
    assert found(After(BATCHWISE[kind]), sigma=sigma, clip=clip) == ("no", False)


@pytest.mark.parametrize("clip", [False, True])
def test_a_scale_of_what_was_clamped_is_found_out(clip: bool) -> None:
    """Where noise is little. Where it is large some pixel of a batch always meets the limit, and the scale is fixed."""
    assert found(After(BATCHWISE[CLAMPED]), sigma=0.02, clip=clip) == ("no", False)


def test_the_same_dark_image_is_not_sound_beside_a_bright_one() -> None:
    dark = torch.full((1, *SHAPE), 20, dtype=torch.uint8)
    bright = torch.full((1, *SHAPE), 255, dtype=torch.uint8)
    for company in (dark, torch.cat([dark, bright])):
        smoothed = make(After(by_range), sigma=0.02, clip=True)
        assert not smoothed.certify(company, n0=5, n=40).sound


class Selective(nn.Module):
    """Looks beyond its row at images of a brightness that neither noise images nor black or white ones have."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        near = ((flat.mean(1) - 0.3).abs() < 0.1)[:, None]
        return flat[:, :CLASSES] + near * (flat * near).mean(0)[:CLASSES]


def test_rows_of_the_actual_images_are_looked_at(tmp_path: Any) -> None:
    grey = torch.full((4, *SHAPE), round(0.3 * 255), dtype=torch.uint8)
    smoothed = make(Selective(), sigma=0.05)
    assert smoothed.engine(grey).sound
    certificate = smoothed.certify(grey, n0=5, n=40)
    assert (certificate.meta["row_function"], certificate.sound) == ("no", False)

    engine, data, log = make(Selective(), sigma=0.05).engine(grey), [(image, 0) for image in grey], tmp_path / "run.tsv"
    log_run(engine, data, [0], lambda *_: FixedCertify(5, 40, 0.001, 0.05, "multiclass"), {}, str(log))
    assert environment_of(log)["row_function"] == "bit for bit"  # as it seemed when the log was begun
    assert environment_of(log)["sound"] is False
    fresh = make(Selective(), sigma=0.05).engine(grey)
    log_run(fresh, data, [0], lambda *_: FixedCertify(5, 40, 0.001, 0.05, "multiclass"), {}, log, resume=True)
    assert fresh.sound  # which had nothing to do
    assert environment_of(log)["sound"] is False


def test_a_look_at_rows_leaves_their_votes_as_they_are() -> None:
    """Whatever the counts of micro-batches that are looked at: 1, 2, 4, …"""
    whole = make(Pixels(CLASSES)).votes(IMAGES, 1000)
    parts = make(Pixels(CLASSES), max_batch=7)
    assert torch.equal(parts.votes(IMAGES, 1000), whole)
    assert parts.certify(IMAGES, n0=5, n=40).sound


# ---- C. equal bits, or equal up to rounding --------------------------------------------------------------------------


class InPlaces(nn.Module):
    """Logits whose last bits depend on the place in the batch, as those of matrix products may."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :CLASSES] * (1 + 1e-6 * torch.arange(len(x))[:, None])


class InCompany(nn.Module):
    """Logits whose last bits depend on the other rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :CLASSES] + 1e-6 * x.mean()


@pytest.mark.parametrize("base", [InPlaces(), InCompany()])
def test_equal_up_to_rounding_is_not_sound(base: nn.Module) -> None:
    assert found(base) == ("up to rounding", False)
    assert found(base, max_batch=1) == ("bit for bit", True)  # a row that is alone has neither place nor company


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_lanes_compute_the_same_bits(threads: int) -> None:
    class ByThread(nn.Module):
        """A copy for each lane, which computes in another way than the base."""

        def __deepcopy__(self, memo: Any) -> nn.Module:
            return InPlaces()

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :CLASSES]

    torch.set_num_threads(threads)
    try:
        assert found(Pixels(CLASSES)) == ("bit for bit", True)
        assert found(ByThread()) == (("bit for bit", True) if threads == 1 else ("up to rounding", False))
    finally:
        torch.set_num_threads(1)


# ---- D, F, G ---------------------------------------------------------------------------------------------------------


def test_a_seed_is_drawn_where_none_is_given() -> None:
    smoothed = [make(Pixels(CLASSES), seed=None) for _ in range(2)]
    assert smoothed[0].seed != smoothed[1].seed
    certificate = smoothed[0].certify(IMAGES, n0=5, n=40)
    assert certificate.seed == certificate.meta["seed"] == smoothed[0].seed
    again = make(Pixels(CLASSES), seed=certificate.seed).certify(IMAGES, n0=5, n=40)
    assert torch.equal(certificate.counts, again.counts)


def test_meta_tells_weights_versions_and_processor() -> None:
    base = network()
    metas = [make(base).certify(IMAGES, n0=5, n=40).meta]
    assert metas[0]["environment"].keys() >= {"smoothfast", "torch", "scipy", "processor", "kernels", "platform"}
    negated(base)
    metas.append(make(base).certify(IMAGES, n0=5, n=40).meta)
    assert [name for name in metas[0] if metas[0][name] != metas[1][name]] == ["weights_sha256"]
    metas.append(make(network()).certify(IMAGES, n0=5, n=40).meta)
    assert metas[0] == metas[2]


@pytest.mark.filterwarnings("ignore:.*quantiz", "ignore:.*is deprecated")
def test_dynamically_quantised_layers_are_taken_and_found_out() -> None:
    """Their scales come from the batch."""
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)).eval())
    other = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)).eval())
    assert found(quantised)[1] is False
    first, second = (make(base).certify(IMAGES, n0=5, n=40).meta["weights_sha256"] for base in (quantised, other))
    assert first != second


def test_weights_within_a_subclass_are_hashed() -> None:
    """As those of FSDP, each a DTensor around a shard."""
    layer = nn.Linear(48, CLASSES)
    before = weights_sha256(layer)
    for name in ("weight", "bias"):
        setattr(layer, name, nn.Parameter(TwoTensor(getattr(layer, name).data, getattr(layer, name).data.clone())))
    wrapped = weights_sha256(layer)
    assert wrapped != before  # two of each
    layer.bias.data.b.add_(1)
    assert weights_sha256(layer) != wrapped


def test_hashing_leaves_storages_as_they_are() -> None:
    """FSDP resizes them; NumPy would have forbidden it."""
    layer = nn.Linear(48, CLASSES)
    weights_sha256(layer)
    assert layer.weight.untyped_storage().resizable()


@pytest.mark.parametrize("sigma", [1e-7, 5e-324, 0.0, -1.0, float("nan"), float("inf"), [0.1, 1e-9, 0.1]])
def test_no_noise_is_that_little(sigma: Any) -> None:
    with pytest.raises(ValueError, match=r"sigma is .*; it must be finite and at least 1e-06"):
        make(Pixels(CLASSES), sigma=sigma)


def test_sequential_tests_end_where_they_are_proven() -> None:
    smoothed = make(Pixels(CLASSES))
    with pytest.raises(ValueError, match=r"n is 1000001; it must be at most 1,000,000 by method sequential"):
        smoothed.certify(IMAGES, n=1_000_001, method="sequential", radius=0.1)
