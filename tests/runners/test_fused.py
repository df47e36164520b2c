"""The fused kernels compute what a network computes, whoever wrote it, and its gradient; others are declined."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.amx import SOURCES, EmulatedAmx
from helpers.classifiers import embedded
from helpers.resnets import images, made, settled
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import SmoothedClassifier, data, models, ops
from smoothfast.attacks import EPGD
from smoothfast.layers import inject_noise, scale_noise
from smoothfast.losses import Differentiated, cross_entropy
from smoothfast.noise import Law, Stream, gaussian_law, lattice_law, stream_key
from smoothfast.runners import DeclinedError, make_runners
from smoothfast.runners.choice import Workload as Work
from smoothfast.runners.choice import candidates
from smoothfast.runners.expressions import MismatchError
from smoothfast.runners.fused import Fused, arithmetics, dtype_of, fused, preferred
from smoothfast.runners.resnets import CifarResNet, recognised
from smoothfast.voting import LOGIT, PREDICTION, SOFT, Voting, weighted

CPU = torch.device("cpu")
REPLICAS = torch.zeros(2, 3, 32, 32)

needs_kernels = pytest.mark.skipif(not arithmetics(), reason="smoothfast._C is absent")
needs_bf16 = pytest.mark.skipif(
    not preferred("bf16"), reason="this processor lacks AVX512-BF16, or smoothfast._C is absent"
)


@pytest.fixture(autouse=True)
def one_core(one_thread: None) -> Iterator[None]:
    return


@cache
def known(widths: tuple[int, int, int], blocks: int, classes: int, shortcut: str) -> CifarResNet:
    """The network `made` that is recognised, which takes most of the time of a test."""
    return recognised(made(widths, blocks, classes, shortcut), (REPLICAS,))


@cache
def known_with_bias(*net: Any) -> tuple[nn.Module, CifarResNet]:
    """One with biases far from 0, and the module in float64."""
    base = made(*net)
    for part in base.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.weight.mul_(0.02)
                part.bias.copy_(torch.where(torch.arange(len(part.bias)) % 3 == 0, -1.0, 1.0))
    return deepcopy(base).double(), recognised(base, (REPLICAS,))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def usual(arithmetic: str) -> Any:
    """What PyTorch computes in the numbers of an arithmetic."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype_of(arithmetic) == torch.bfloat16)


def suiting(net: Any, arithmetic: str) -> CifarResNet:
    """A network that is recognised; a skip where the arithmetic does not take its widths."""
    network = known(*net)
    if not network.suits(arithmetic):
        pytest.skip(f"{arithmetic} takes widths that are multiples of 32")
    return network


NETS = [
    ((16, 32, 64), 1, 10, "A"),
    ((16, 32, 64), 2, 10, "B"),
    ((32, 64, 96), 1, 7, "B"),
    ((64, 64, 128), 1, 100, "A"),
    ((16, 64, 64), 1, 1, "B"),
    ((48, 16, 80), 1, 3, "B"),
]


@pytest.mark.parametrize("net", NETS)
def test_logits_and_gradients(net: Any, arithmetic: str) -> None:
    count = 3 if arithmetic == "amx" else 24  # it may be emulated
    base, labels = made(*net), torch.arange(count) % net[2]
    x, dtype = images(count), dtype_of(arithmetic)
    run = Fused(suiting(net, arithmetic), arithmetic, gradients=True)
    logits, gradients = run.gradients(x.to(dtype), labels[:, None])
    assert torch.equal(logits, Fused(run.network, arithmetic, gradients=False)(x.to(dtype)))
    double = base.double()
    exact, by = Differentiated(double, cross_entropy)(x.double(), labels[:, None])
    exact = double(x.double()).detach()
    single = base.float()
    with usual(arithmetic):
        theirs, their_by = Differentiated(single, cross_entropy)(x, labels[:, None])
    assert error(logits, exact) <= (4 if dtype == torch.float32 else 2) * error(theirs, exact)
    if net[2] > 1:  # a single class has no gradient
        ours, torchs = (F.cosine_similarity(g.double().flatten(1), by.flatten(1)).mean() for g in (gradients, their_by))
        # Half the square of an error, twice which is allowed; in float32 one unit at a kink is most of it.
        assert 1 - ours <= max(4 * (1 - torchs), 1e-4)
    else:
        assert gradients.count_nonzero() == 0


@pytest.mark.parametrize("net", [*NETS[:4], NETS[5]])
def test_gradients_where_it_is_known_which_units_are_on(net: Any, arithmetic: str) -> None:
    """Biases far from 0 leave no ReLU on the border, where bf16 and float64 may differ: then both have one gradient."""
    suiting(net, arithmetic)
    base, network = known_with_bias(*net)
    x, labels, dtype = images(3), torch.arange(3) % net[2], dtype_of(arithmetic)
    _, gradients = Fused(network, arithmetic, gradients=True).gradients(x.to(dtype), labels[:, None])
    _, exact = Differentiated(base, cross_entropy)(x.double(), labels[:, None])
    assert error(gradients, exact) < (2e-6 if dtype == torch.float32 else 0.01)


def test_a_row_is_a_function_of_itself(arithmetic: str) -> None:
    run = Fused(known((16, 32, 64), 1, 10, "A"), arithmetic, gradients=True)
    x, labels = images(37).to(dtype_of(arithmetic)), torch.arange(37)[:, None] % 10
    logits, gradients = run.gradients(x, labels)
    for rows in ([0], [5, 3], list(range(12, -1, -1)), [7] * 5, list(range(1, 36))):
        again = run.gradients(x[rows], labels[rows])
        assert torch.equal(again[0], logits[rows])
        assert torch.equal(again[1], gradients[rows])
    torch.set_num_threads(2)
    assert torch.equal(run.gradients(x, labels)[1], gradients)
    assert torch.equal(run(x.contiguous(memory_format=torch.channels_last)), logits)


def test_what_is_not_finite_stays_with_its_row(arithmetic: str) -> None:
    run = Fused(known((16, 32, 64), 1, 10, "B"), arithmetic, gradients=True)
    x, labels, dtype = images(6), torch.zeros(6, 1, dtype=torch.int64), dtype_of(arithmetic)
    clean = run.gradients(x.to(dtype), labels)
    for value in (torch.nan, torch.inf, -torch.inf, 3e38):
        broken = x.clone()
        broken[1, :, 9, 31] = value
        broken[4] = value
        logits, gradients = run.gradients(broken.to(dtype), labels)
        others = [0, 2, 3, 5]
        assert torch.equal(logits[others], clean[0][others])
        assert torch.equal(gradients[others], clean[1][others])
        if value != value:
            assert logits[[1, 4]].isnan().all()
    assert torch.equal(run(x.to(dtype)), clean[0])  # nothing of it is left in memory


@needs_kernels
@pytest.mark.parametrize("arithmetic", arithmetics())
def test_operators(arithmetic: str) -> None:
    network = known((16, 32, 64), 1, 3, "A")
    packed, shape = network.packed(arithmetic, gradients=True), [16, 32, 64, 1, 3]
    x, other = (images(3).to(dtype) for dtype in (dtype_of(arithmetic), torch.float16))
    assert network.shape == shape
    torch.library.opcheck(torch.ops.smoothfast.fused_logits, (x, packed, shape, arithmetic))
    law, ids, counts = gaussian_law(0.1), torch.arange(3), torch.zeros(3, 3, dtype=torch.int64)
    numbers = (ids, ids, ids, stream_key(0, Stream.PREDICT), law.name, law.table, *[torch.ones(3)] * 2, False)
    arguments = (x.float(), *numbers, packed, shape, arithmetic, counts, counts[0].clone())
    torch.library.opcheck(torch.ops.smoothfast.fused_votes, arguments)
    with pytest.raises(RuntimeError, match=r"images must be \[S, 3, 32, 32\], not \[3, 3, 31, 32\]"):
        torch.ops.smoothfast.fused_votes(x.float()[:, :, 1:], *arguments[1:])
    with pytest.raises(RuntimeError, match="packed must come from fused_pack, for shape"):
        torch.ops.smoothfast.fused_votes(*arguments[:10], packed[:-1], *arguments[11:])
    torch.library.opcheck(torch.ops.smoothfast.fused_gradients, (x, torch.arange(3), packed, shape, arithmetic))
    assert ops.fused_logits(x[:0], packed, shape, arithmetic).shape == (0, 3)
    for arguments, message in [
        ((other, packed, shape, arithmetic), r"replicas must be (BFloat16|Float) \[R, 3, 32, 32\], not Half"),
        ((x[:, :, 1:], packed, shape, arithmetic), r"replicas must be .* \[R, 3, 32, 32\], not .* \[3, 3, 31, 32\]"),
        ((x, packed[:-1], shape, arithmetic), "packed must come from fused_pack, for shape"),
        ((x, torch.cat([packed[:1], packed])[1:], shape, arithmetic), "packed must come from fused_pack, for shape"),
        ((x, packed, [16, 32, 64, 2, 3], arithmetic), "packed must come from fused_pack, for shape"),
        ((x, packed, [16, 33, 64, 1, 3], arithmetic), "widths must be multiples of"),
        ((x, packed, shape[:4], arithmetic), "shape must be three widths, blocks and classes"),
        ((x, packed, shape, "sse2"), "arithmetic is 'sse2', which this processor has not"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.fused_logits(*arguments)  # type: ignore[arg-type]
    without = network.packed(arithmetic, gradients=False)
    with pytest.raises(RuntimeError, match="fused_pack with gradients"):
        ops.fused_gradients(x, torch.arange(3), without, shape, arithmetic)
    with pytest.raises(RuntimeError, match=r"classes\[2\] is 3; there are 3"):
        ops.fused_gradients(x, torch.tensor([0, 1, 3]), packed, shape, arithmetic)
    kernels, gains, biases = zip(*((part.weight, part.gain, part.bias) for part in network.convolutions), strict=True)
    linear = torch.zeros(3, 64), torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"weights\[1\] must be Float \[16, 16, 3, 3\], not Float \[16, 3, 3, 3\]"):
        ops.fused_pack([kernels[0], kernels[0], *kernels[2:]], gains, biases, *linear, arithmetic, False)
    with pytest.raises(RuntimeError, match=r"gains\[8\] must be Double \[64\], not Float \[64\]"):
        ops.fused_pack(kernels, [*gains[:-1], gains[-1].float()], biases, *linear, arithmetic, False)
    with pytest.raises(RuntimeError, match="arithmetic is 'sse2', which there is not"):
        ops.fused_pack(kernels, gains, biases, *linear, "sse2", False)


@needs_kernels
def test_packing_for_gpus() -> None:
    """Both arithmetics of GPUs take the same, of which processors compute nothing."""
    network, wide = known((16, 32, 64), 1, 3, "A"), known((16, 64, 64), 1, 3, "B")
    packed = network.packed("bf16_mma", gradients=False)
    assert torch.equal(packed, network.packed("bf16_mma_pairs", gradients=False))
    assert network.suits("bf16_mma")
    assert not wide.suits("bf16_mma")
    with pytest.raises(RuntimeError, match=r"on GPUs widths must be 16, 32, 64 or 32, 64, 128; they are 16, 64, 64"):
        wide.packed("bf16_mma", gradients=False)
    with pytest.raises(RuntimeError, match="arithmetic is 'bf16_mma', which has no gradients"):
        network.packed("bf16_mma", gradients=True)
    with pytest.raises(RuntimeError, match="arithmetic is 'bf16_mma', which this processor has not"):
        ops.fused_logits(images(2).bfloat16(), packed, network.shape, "bf16_mma")


@needs_kernels
@pytest.mark.parametrize("arithmetic", arithmetics())
@pytest.mark.parametrize("voting", [PREDICTION, weighted([5, 3]), SOFT, LOGIT], ids=lambda voting: voting.name)
@pytest.mark.parametrize("law", [lattice_law(0.25), gaussian_law(0.1)], ids=lambda law: law.name)
def test_votes_are_those_of_the_single_operators(arithmetic: str, voting: Voting, law: Law) -> None:
    network = known((16, 32, 64), 1, 5, "B")
    numbers = network.packed(arithmetic, gradients=False), network.shape, arithmetic
    generator = torch.Generator().manual_seed(3)
    some = torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    some = some if law.name == "lattice" else some / 255
    slots = torch.randint(-1, 4, (75,), generator=generator)
    rows = (some, slots, slots.clamp(min=0) + 7, torch.arange(75), stream_key(1, Stream.PREDICT), law)
    affine = (*ops.affine(models.CIFAR10_STATISTICS, 3, some.dtype), True)
    wanted, found = ((torch.ones(4, 5, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)) for _ in range(2))
    logits = ops.fused_logits(ops.noisy_replicas(*rows, *affine, dtype_of(arithmetic), torch.channels_last), *numbers)
    ops.tally(logits, slots, *wanted, voting)
    by_one = ops.fused_votes((*rows, *affine), *numbers, *found, voting)
    assert torch.equal(by_one, logits.masked_fill(slots[:, None] < 0, 0))
    assert torch.equal(torch.cat([found[0], found[1][:, None]], 1), torch.cat([wanted[0], wanted[1][:, None]], 1))
    assert (found[0] != 1).any()
    torch.set_num_threads(2)
    ops.fused_votes((*rows, *affine), *numbers, *found, voting)
    assert torch.equal(found[0] - wanted[0], wanted[0] - 1)
    padding = (some, slots - 9, *rows[2:])
    assert ops.fused_votes((*padding, *affine), *numbers, *found, voting).count_nonzero() == 0


@pytest.mark.skipif("amx" in arithmetics(), reason="instructions are counted where they are emulated")
def test_instructions_of_amx(emulated_amx: EmulatedAmx) -> None:
    """Of a ResNet-20 and a sample: what AMX is kept busy with. Loading a tile takes half the time of a product."""
    network = recognised(models.ResNet(20).eval(), (REPLICAS,))
    packed, shape = network.packed("amx", gradients=True), network.shape
    _, samples, layers = ops.extension.fused_profile(packed.numpy(), shape, "avx512_bf16", 1)
    forward, backward = 5920, 5696
    assert sum(products for _, _, products, _ in layers) == (forward + backward) * samples
    x = images(samples).bfloat16()
    emulated_amx.fused_logits(x, packed, shape, "amx")
    executed = emulated_amx.executed
    assert executed["products"] == executed["loads"] == forward * samples
    assert executed["stores"] < 0.15 * executed["products"]
    emulated_amx.fused_gradients(x, torch.zeros(samples, dtype=torch.int64), packed, shape, "amx")
    assert emulated_amx.executed["products"] == (forward + backward) * samples


@pytest.mark.slow
@needs_kernels
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    root, program = Path(__file__).parents[2], tmp_path / "sanitized"
    sources = ["tests/runners/fused_sanitized.cpp", *SOURCES]
    watched = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compiled = ["g++", "-O1", "-std=c++17", *watched, "-Icsrc", "-Itests", *sources, "-o", str(program)]
    subprocess.run(compiled, cwd=root, check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "clean\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "emulator", "flags"),
    [("g++", None, []), ("aarch64-linux-gnu-g++", "qemu-aarch64-static", ["-static"])],
    ids=["here", "aarch64"],
)
def test_winograd_where_there_is_no_torch(
    tmp_path: Path, compiler: str, emulator: str | None, flags: list[str]
) -> None:
    """Of Debian: g++-aarch64-linux-gnu and qemu-user-static."""
    for tool in filter(None, (compiler, emulator)):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    root, program = Path(__file__).parents[2], tmp_path / "program"
    stems = ("cpu/isa", "fused/plan", "cpu/fused/winograd/program", "cpu/fused/winograd/network")
    sources = ["tests/runners/winograd_elsewhere.cpp", *(f"csrc/{stem}.cpp" for stem in stems)]
    compiled = [
        compiler,
        "-O2",
        "-std=c++17",
        "-ffp-contract=off",
        "-w",
        *flags,
        "-Icsrc",
        *sources,
        "-o",
        str(program),
    ]
    subprocess.run(compiled, cwd=root, check=True)
    run = [*filter(None, (emulator,)), str(program)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "same\n"


# ---- which networks --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """As in many public implementations: its own names, a downsample module, in-place ReLU, one module for both."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn_a, self.relu = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv_b = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn_b, self.downsample = nn.BatchNorm2d(outputs), shortcut

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = self.bn_b(self.conv_b(self.relu(self.bn_a(self.conv_a(x)))))
        x += residual
        return self.relu(x)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def padded(x: Tensor) -> Tensor:
    grow = x.shape[1] // 2
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, grow, grow), "constant", 0)


def subsampled(x: Tensor) -> Tensor:
    return F.pad(F.avg_pool2d(x, 1, 2), (0, 0, 0, 0, 0, x.shape[1]))


def projection(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))


class Other(nn.Module):
    """Somebody else's ResNet-8."""

    def __init__(self, shortcut: Callable[[int, int], nn.Module], pool: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.normalise = models.Normalize((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body = nn.Sequential(
            Block(16, 16, 1, None), Block(16, 32, 2, shortcut(16, 32)), Block(32, 64, 2, shortcut(32, 64))
        )
        self.pool, self.drop, self.head = pool, nn.Dropout(dropout), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.norm(self.stem(self.normalise(x)))))
        return self.head(self.drop(self.pool(x).view(x.size(0), -1)))


def wrapped() -> nn.Module:
    return nn.Sequential(models.Normalize((0.1, 0.2, 0.3), (1.0, 1.0, 2.0)), models.ResNet(8), nn.Identity())


def of_the_family() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return {
            "ours, option A": models.ResNet(8),
            "ours, option B": models.ResNet(14, 5, "B"),
            "ours, behind a normalisation": wrapped(),
            "padded, average pool, dropout": Other(lambda i, o: Lambda(padded), nn.AvgPool2d(8), 0.5),
            "pooled with stride 2, adaptive pool": Other(lambda i, o: Lambda(subsampled), nn.AdaptiveAvgPool2d(1)),
            "projections, flatten": Other(projection, nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten())),
        }


@pytest.mark.parametrize("name", of_the_family())
def test_recognised(name: str) -> None:
    base = settled(of_the_family()[name])
    network = recognised(base, (REPLICAS,))
    assert network.shape[:3] == [16, 32, 64]
    x = images(3).double()
    found = x if network.scale is None else x * network.scale.double() + network.shift.double()
    stride = {id(c): c.stride for c in network.convolutions}
    first, *rest = network.convolutions

    def convolved(x: Tensor, c: Any) -> Tensor:
        return F.conv2d(x, c.weight * c.gain.view(-1, 1, 1, 1), c.bias, stride[id(c)], c.size // 2)

    found = convolved(found, first).relu()
    while rest:  # by the definition of the family
        shortcut = rest.pop(0) if rest[0].size == 1 else None
        inner, outer = rest.pop(0), rest.pop(0)
        # The bias of a shortcut is part of that of the block's last convolution.
        straight = found if shortcut is None else convolved(found, shortcut) - shortcut.bias.view(-1, 1, 1)
        found = (convolved(convolved(found, inner).relu(), outer) + straight).relu()
    logits = F.linear(found.mean((2, 3)), network.linear.weight.double(), network.linear.bias.double())  # type: ignore[union-attr]
    torch.testing.assert_close(logits, base.double()(x), rtol=1e-5, atol=1e-5)


class Squeezed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


def conv(inputs: int, outputs: int, size: int = 3, padding: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, 1, padding, **options)


# What takes the place of parts of a ResNet-8, and what is said of it.
NEAR: dict[str, tuple[dict[str, nn.Module], str]] = {
    "dilation": ({"stage1.0.conv2": conv(16, 16, padding=2, dilation=2)}, "its dilation is [2, 2]"),
    "padding": ({"stage1.0.conv1": conv(16, 16, padding=2), "stage1.0.conv2": conv(16, 16, padding=0)}, "is [2, 2]"),
    "padding by reflection": ({"conv1": conv(3, 16, padding_mode="reflect")}, "pad"),
    "groups": ({"stage2.0.conv2": conv(32, 32, groups=2)}, "it has 2 groups"),
    "a 5x5": ({"stage1.0.conv1": conv(16, 16, 5, 2)}, "its kernel is 5x5"),
    "squeeze and excitation": ({"stage1.0.bn2": nn.Sequential(nn.BatchNorm2d(16).eval(), Squeezed())}, "aten.sigmoid"),
    "another activation": ({"bn1": nn.SiLU()}, "silu"),
    "train mode": ({"bn1": nn.BatchNorm2d(16)}, "_native_batch_norm_legit_functional"),
    "no shortcut": ({"stage1.0.shortcut": Lambda(lambda x: 0 * x)}, "it takes"),
    "a shortcut from elsewhere": ({"stage1.0.shortcut": nn.ReLU()}, "must be a shortcut from its input"),
    "a width of 40": (
        {"stage3": models.ResNet._stage(32, 40, 1, 2, "B").eval(), "fc": nn.Linear(40, 9)},
        "[16, 32, 40]",
    ),
    "two stages": ({"stage3": nn.Identity(), "fc": nn.Linear(32, 9)}, "it has 2 blocks"),
    "pre-activation": ({"stage1.0.conv1": nn.Sequential(nn.BatchNorm2d(16).eval(), nn.ReLU(), conv(16, 16))}, "only a"),
    "the largest pixel": (
        {"stage3": nn.Sequential(models.BasicBlock(32, 64, 2, "A").eval(), nn.MaxPool2d(2))},
        "max_p",
    ),
}


@pytest.mark.parametrize("name", NEAR)
def test_near_misses_are_declined(name: str) -> None:
    parts, reason = NEAR[name]
    net = models.ResNet(8).eval()
    for path, part in parts.items():
        net.set_submodule(path, part)
    with pytest.raises(MismatchError) as caught:
        recognised(net, (REPLICAS,))
    assert reason in str(caught.value)


def test_wide_networks_and_other_images_are_declined() -> None:
    with pytest.raises(MismatchError, match="only a convolution may come before a batch norm"):
        recognised(models.WideResNet(10, 1).eval(), (REPLICAS,))
    with pytest.raises(MismatchError, match=r"images are \[3, 64, 64\]; they must be \[3, 32, 32\]"):
        recognised(models.ResNet(8).eval(), (torch.zeros(2, 3, 64, 64),))


# ---- as a runner -----------------------------------------------------------------------------------------------------


@needs_kernels
def test_what_the_runner_declines() -> None:
    net = made((16, 32, 64), 1, 10, "A")
    for network, dtype, message in [
        (net, torch.float16, r"does not compute in torch\.float16$"),
        (models.WideResNet(10, 1).eval(), torch.bfloat16, "does not take this base classifier: "),
        (
            Differentiated(net, lambda logits, classes: logits[:, 0]),
            torch.bfloat16,
            "gradients are those of the cross-",
        ),
    ]:
        examples = (
            (REPLICAS, torch.zeros(2, 1, dtype=torch.int64)) if isinstance(network, Differentiated) else (REPLICAS,)
        )
        with pytest.raises(DeclinedError, match=message):
            make_runners(network, "fused", dtype, CPU, examples, 1)


@needs_kernels
def test_what_it_computes_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    net = made((16, 32, 64), 1, 10, "A")
    true = ops.fused_logits
    monkeypatch.setattr(ops, "fused_logits", lambda *arguments: true(*arguments).flip(0))
    with pytest.raises(
        MismatchError, match=r"its logits differ from those in float32 by .* of their norm by winograd_fp32"
    ):
        fused(net, (REPLICAS,), ["winograd_fp32"])


@needs_kernels
def test_votes_and_attacks() -> None:
    """As by plain PyTorch in bf16, up to samples on a border: both round, each in its own way."""
    base, some = embedded(), data.demo()
    pixels, labels = some.images[:8].float() / 255, some.labels[:8]
    options: dict[str, Any] = {"normalize": models.CIFAR10_STATISTICS, "precision": "bf16"}
    left = {}
    for runner in ("fused", "eager"):
        model = SmoothedClassifier(base, sigma=0.25, num_classes=10, runner=runner, **options)
        votes = model.votes(pixels, 100)
        adversarial = EPGD(model, eps=16 / 255, steps=4, samples=4, runner=runner)(pixels, labels)
        left[runner] = votes, model.votes(adversarial, 100).gather(1, labels[:, None])
    (clean, fused_left), (by_eager, eager_left) = left["fused"], left["eager"]
    assert (clean - by_eager).abs().sum() <= 2 * 8 * 100 * 0.02
    before = clean.gather(1, labels[:, None]).double().mean()
    assert fused_left.double().mean() < before - 20
    assert abs((fused_left - eager_left).double().mean()) < 5


@needs_kernels
def test_votes_behind_a_normalisation_and_of_a_wrong_number_of_classes() -> None:
    base, some = settled(of_the_family()["ours, behind a normalisation"]), data.demo().images[:4]
    options: dict[str, Any] = {"sigma": 0.25, "precision": "bf16"}
    ours, eager = (
        SmoothedClassifier(base, num_classes=10, runner=runner, **options).votes(some, 100)
        for runner in ("fused", "eager")
    )
    assert (ours - eager).abs().sum() <= 2 * 4 * 100 * 0.03
    with pytest.raises(ValueError, match="num_classes is 9; the base classifier returns logits of 10"):
        SmoothedClassifier(base, num_classes=9, runner="fused", **options).votes(some, 100)


@needs_kernels
def test_noise_in_the_network() -> None:
    """Weights of each pass are packed anew, and are those of every other runner."""
    base = scale_noise(inject_noise(made((16, 32, 64), 1, 10, "B"), kind="cni"), 0.1)
    votes = {
        runner: SmoothedClassifier(base, sigma=0.1, num_classes=10, precision="bf16", runner=runner).votes(
            images(8).sigmoid(), 50
        )
        for runner in ("fused", "eager")
    }
    assert (votes["fused"] - votes["eager"]).abs().sum() <= 2 * 8 * 50 * 0.03
    plain = SmoothedClassifier(made((16, 32, 64), 1, 10, "B"), sigma=0.1, num_classes=10).votes(images(8).sigmoid(), 50)
    assert (votes["fused"] - plain).abs().sum() > (votes["fused"] - votes["eager"]).abs().sum()


def test_when_it_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, list[str]] = {}

    def preferred(precision: str, device: str = "cpu") -> list[str]:
        return there.get(precision if device == "cpu" else f"{precision} on {device}", [])

    monkeypatch.setattr("smoothfast.runners.choice.find_spec", lambda name: name == "openvino" or None)
    monkeypatch.setattr("smoothfast.runners.choice.shutil.which", lambda name: name)
    monkeypatch.setattr("smoothfast.runners.choice.preferred", preferred)
    work = Work(8.1e7, 39, family=True)
    assert "fused" not in candidates(work, 10**7, "bf16", CPU)
    for precision, arithmetic in [("bf16", "amx"), ("bf16", "winograd_bf16"), ("fp32", "winograd_fp32")]:
        there[precision] = [arithmetic]
        assert candidates(work, 10**5, precision, CPU)[0] == candidates(work, 10**7, precision, CPU)[0] == "fused"
        assert candidates(work, 100, precision, CPU)[0] == "eager"
        assert "fused" not in candidates(Work(8.1e7, 39), 10**7, precision, CPU)
    assert "fused" not in candidates(work, 10**7, "fp16", CPU)
    assert candidates(work, 100, "int8", CPU) == ["eager"]
    there["int8"] = ["int8_avx2"]
    assert candidates(work, 100, "int8", CPU) == ["fused", "eager"]
    assert candidates(work, 100, "int8", torch.device("cuda")) == ["eager"]
    there["int8 on cuda"] = ["int8_mma"]
    assert candidates(work, 100, "int8", torch.device("cuda")) == ["fused", "eager"]
    assert candidates(Work(8.1e7, 39), 100, "int8", CPU) == ["openvino"]
    monkeypatch.setattr("smoothfast.runners.choice._has_vectors", lambda: False)
    assert "fused" not in candidates(work, 10**7, "fp32", CPU)


def test_the_first_arithmetic_that_is_exact_enough_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where products of bf16 are too far off, the last stage is in float32; a width of 48 is none of tiles."""
    if "winograd_mixed" not in arithmetics():
        pytest.skip("this processor lacks AVX512-BF16, or smoothfast._C is absent")
    names, net, true = ["amx", "winograd_bf16", "winograd_mixed"], made((48, 16, 80), 1, 3, "B"), ops.fused_logits
    assert fused(net, (REPLICAS,), names).arithmetic == "winograd_bf16"
    with pytest.raises(MismatchError, match=r"its widths are \[48, 16, 80\]; amx takes multiples of 32"):
        fused(net, (REPLICAS,), ["amx"])

    def coarse(replicas: Tensor, packed: Tensor, shape: list[int], arithmetic: str) -> Tensor:
        return true(replicas, packed, shape, arithmetic) * (1.1 if arithmetic == "winograd_bf16" else 1)

    monkeypatch.setattr(ops, "fused_logits", coarse)
    assert fused(net, (REPLICAS,), names).arithmetic == "winograd_mixed"
