"""Forward and backward passes over noisy copies against their definition in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smoothfast import ops
from smoothfast.engine import BaseFunction, Gradients, gradients, lanes
from smoothfast.engine.gradients import Outcome
from smoothfast.losses import cross_entropy, difference, margin
from smoothfast.noise import Law, Stream, gaussian, gaussian_law, no_noise
from smoothfast.runners import DeclinedError
from smoothfast.runners.gradient import traced

SHAPE = (3, 6, 5)
NORMALIZE = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
SEED = 2**63 + 5


class Net(nn.Module):
    """Convolutions with stride, padding, groups, batch norm and pooling: 4 classes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
            self.head = nn.Linear(8, 4)
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.first(x)))
        return 3 * self.head(F.silu(self.second(x)).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))


CLASSES = torch.tensor([0, 1, 2, 3, 1])
IDS = torch.tensor([7, 0, 2**40, 3, 12])


def make(net: nn.Module, law: Law | None = None, **options: Any) -> Gradients:
    sums = {name: options.pop(name) for name in ("loss", "average", "replicas_per_forward") if name in options}
    options = {"normalize": NORMALIZE, "precision": "fp32", "seed": SEED} | options
    return Gradients(BaseFunction.resolved(net, law or gaussian_law(0.25), SHAPE, **options), **sums)


def logits_of(net: nn.Module, image: Tensor, image_id: int, first: int, samples: int) -> Tensor:
    """Of noisy copies, float64 [samples, K]: a function of the image."""
    noise = gaussian(SHAPE, 0.25, SEED, image_id, range(first, first + samples), Stream.ATTACK).double()
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in NORMALIZE)
    return net((image + noise - mean) / std)


def definition(net: nn.Module, images: Tensor, average: str, first: int, samples: int) -> Outcome:
    """One image after the other in float64."""
    net = net.double()
    parts = []
    for image, label, image_id in zip(images.double(), CLASSES, IDS.tolist(), strict=False):
        image = image.requires_grad_()
        logits = logits_of(net, image, image_id, first, samples)
        if average == "loss":
            loss = F.cross_entropy(logits, label.expand(samples))
        else:
            loss = -logits.softmax(1)[:, label].mean().log()
        votes = logits.argmax(1).bincount(minlength=4)
        parts.append((loss.detach(), logits.mean(0).detach(), votes, torch.autograd.grad(loss, image)[0]))
    net.float()
    return Outcome(*(torch.stack(part) for part in zip(*parts, strict=True)))


def close(found: Outcome, wanted: Outcome) -> None:
    torch.testing.assert_close(found.losses.double(), wanted.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logits.double(), wanted.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.votes, wanted.votes)
    torch.testing.assert_close(found.gradients.double(), wanted.gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("samples", [1, 3, 8, 9, 21])
@pytest.mark.parametrize("average", ["loss", "probabilities"])
def test_against_the_definition(net: Net, images: Tensor, average: str, samples: int) -> None:
    found = make(net, average=average, micro_batch=24).outcomes(images, CLASSES, IDS, 5, samples, "backward")
    close(found, definition(net, images, average, 5, samples))


@pytest.mark.parametrize("micro_batch", [1, 5, 8, 13, 64])
def test_any_micro_batch(net: Net, images: Tensor, micro_batch: int) -> None:
    found = make(net, average="probabilities", micro_batch=micro_batch).outcomes(
        images, CLASSES, IDS, 0, 11, "backward"
    )
    close(found, definition(net, images, "probabilities", 0, 11))


def test_forward_passes_are_those_of_the_gradients(net: Net, images: Tensor) -> None:
    one = make(net)
    forward, backward = (one.outcomes(images, CLASSES, IDS, 3, 6, how) for how in ("forward", "backward"))
    assert torch.equal(forward.votes, backward.votes)
    torch.testing.assert_close(forward.losses, backward.losses)
    assert forward.gradients.numel() == 0
    assert (one.forwards, one.backwards) == (60, 30)


def test_requests_count_samples_from_the_origin(net: Net, images: Tensor) -> None:
    one, other = make(net), make(net)
    other.origin = 2**24
    found, same = one.outcomes(images, CLASSES, IDS, 2**24 + 5, 3), other.outcomes(images, CLASSES, IDS, 5, 3)
    assert torch.equal(found.logits, same.logits)
    assert not torch.equal(found.logits, one.outcomes(images, CLASSES, IDS, 5, 3).logits)


def test_probabilities_that_underflow_keep_their_gradient(images: Tensor) -> None:
    """The mean of softmax is 0 in float32 where every sample is sure of another class; its logarithm is not."""

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.sum((1, 2, 3)), x.sum((1, 2, 3)) * 0 + 1e4], 1)

    zeros = torch.zeros(1, dtype=torch.int64)
    one = make(Sure(), average="probabilities", normalize=None)
    found = one.outcomes(images[:1], zeros, zeros, 0, 9, "backward")
    assert found.losses.item() == pytest.approx(1e4, rel=0.05)
    torch.testing.assert_close(found.gradients, torch.full_like(images[:1], -1.0))


def test_gradients_by_forward_passes_alone(images: Tensor) -> None:
    """-mean(p noise) / (sigma^2 mean p), and with enough samples the gradient itself."""
    net = Net().eval()
    found = make(net, average="probabilities").outcomes(images, CLASSES, IDS, 0, 40, "estimate")
    for image, label, image_id, gradient in zip(images, CLASSES, IDS.tolist(), found.gradients, strict=True):
        noise = gaussian(SHAPE, 0.25, SEED, image_id, range(40), Stream.ATTACK)
        with torch.no_grad():
            p = logits_of(net.double(), image.double(), image_id, 0, 40).softmax(1)[:, label]
        wanted = -(p.view(-1, 1, 1, 1) * noise).sum(0) / (p.sum() * 0.25**2)
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-4)
    one = make(net.float(), average="probabilities")
    estimate = one.outcomes(images[:1], CLASSES[:1], IDS[:1], 0, 20_000, "estimate").gradients
    exact = one.outcomes(images[:1], CLASSES[:1], IDS[:1], 0, 2_000, "backward").gradients
    deviation = 1 / 0.25 / 20_000**0.5  # of an element of the estimate
    assert ((estimate - exact) / deviation).square().mean() < 1.3  # of 90 elements: 2 standard errors


def test_without_noise_a_sample_is_the_image(net: Net, images: Tensor) -> None:
    found = make(net, no_noise(), normalize=None).outcomes(images, CLASSES, IDS, 0, 2, "backward")
    images = images.requires_grad_()
    loss = F.cross_entropy(net(images), CLASSES, reduction="none")
    torch.testing.assert_close(found.losses, loss.detach())
    torch.testing.assert_close(found.gradients, torch.autograd.grad(loss.sum(), images)[0])


def test_noise_by_channel(net: Net, images: Tensor) -> None:
    one = make(net, gaussian_law((0.1, 0.2, 0.3)))
    assert one.outcomes(images, CLASSES, IDS, 0, 2, "backward").gradients.isfinite().all()


def same(a: Outcome, b: Outcome) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("losses", "logits", "votes", "gradients"))


def at(outcome: Outcome, index: Tensor) -> Outcome:
    return Outcome(*(getattr(outcome, name)[index] for name in ("losses", "logits", "votes", "gradients")))


@pytest.mark.parametrize("samples", [1, 10])
def test_nothing_depends_on_what_is_beside_an_image(net: Net, images: Tensor, samples: int) -> None:
    one = make(net, micro_batch=16, average="probabilities")
    together = one.outcomes(images, CLASSES, IDS, 0, samples, "backward")
    order = torch.tensor([4, 2, 0])
    apart = one.outcomes(images[order], CLASSES[order], IDS[order], 0, samples, "backward")
    assert same(at(together, order), apart)


def test_nothing_depends_on_threads(net: Net, images: Tensor) -> None:
    former, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            one = make(net, micro_batch=16)
            assert len(one.lanes) == threads
            found.append(one.outcomes(images, CLASSES, IDS, 0, 20, "backward"))
    finally:
        torch.set_num_threads(former)
    assert same(*found)


def test_memory_is_that_of_micro_batches(net: Net, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, under_way, most = [], [0], [0]
    inner, call = ops.noisy_replicas, lanes.Lane.call

    def draw(images: Tensor, slots: Tensor, *others: Any) -> Tensor:
        rows.append(len(slots))
        return inner(images, slots, *others)

    def counted(lane: lanes.Lane, function: Any, *arguments: Any) -> Any:
        future = call(lane, function, *arguments)
        result, under_way[0] = future.result, under_way[0] + 1
        most[0] = max(most[0], under_way[0])

        def fetch() -> Any:
            under_way[0] -= 1
            return result()

        future.result = fetch
        return future

    one = make(net, micro_batch=8)
    one.prepare("backward", 1)
    monkeypatch.setattr(ops, "noisy_replicas", draw)
    monkeypatch.setattr(lanes.Lane, "call", counted)
    one.outcomes(images, CLASSES, IDS, 0, 200, "backward")
    assert rows == [8] * 125
    assert most[0] <= lanes.DEPTH * len(one.lanes)


class Restless(nn.Module):
    """Draws one number in each forward pass, for all rows, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.seen = torch.Generator().manual_seed(0), []

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.randn((), generator=self.generator)
        self.seen.append(x[:, 0, 0, 0].detach().clone())
        return torch.stack([x.sum((1, 2, 3)) + shift, x[:, 0, 0, 0] * 0], 1)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_samples_that_share_no_noise_of_the_model(images: Tensor, together: int) -> None:
    model = Restless()
    one = make(model, no_noise(), normalize=None, micro_batch=4, replicas_per_forward=together)
    model.seen.clear()
    one.outcomes(images, torch.zeros(5, dtype=torch.int64), IDS, 0, 6)
    pixels = images[:, 0, 0, 0]
    held = torch.stack([(pixels[:, None] == rows).sum(1) for rows in model.seen])
    assert held.max() == together
    assert held.sum(0).tolist() == [6] * 5


def test_independent_draws_of_the_model_average_out(images: Tensor) -> None:
    """The variance of the mean logit of M samples is 1/M of that of one, and not 1."""
    model = Restless()
    many = images[:1].expand(64, -1, -1, -1).contiguous()
    zeros = torch.zeros(64, dtype=torch.int64)
    one = make(model, no_noise(), normalize=None, micro_batch=1, replicas_per_forward=1)
    found = one.outcomes(many, zeros, zeros, 0, 16).logits[:, 0]
    assert 0.6 / 16 < found.var() < 1.6 / 16  # 64 draws: 5 standard errors


def test_a_loss_of_two_classes(net: Net, images: Tensor) -> None:
    pairs = torch.stack([CLASSES, (CLASSES + 1) % 4], 1)
    found = make(net, no_noise(), loss=difference).outcomes(images, pairs, IDS, 0, 1, "backward")
    rows = torch.arange(5)
    torch.testing.assert_close(found.losses, found.logits[rows, pairs[:, 1]] - found.logits[rows, pairs[:, 0]])


def both(logits: Tensor, classes: Tensor) -> Tensor:
    """Two losses at once: what a runner gets wrong in either is in their sum. A runner takes 4 s to make ready."""
    return cross_entropy(logits, classes) + margin(logits, classes)


@pytest.mark.parametrize("runner", ["compiled", "openvino"])
def test_runners_agree(net: Net, images: Tensor, runner: str) -> None:
    if runner == "openvino":
        pytest.importorskip("openvino")
    wanted = make(net, loss=both, micro_batch=16).outcomes(images, CLASSES, IDS, 0, 6, "backward")
    found = make(net, loss=both, micro_batch=16, runner=runner).outcomes(images, CLASSES, IDS, 0, 6, "backward")
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.gradients, wanted.gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("runner", ["eager", "openvino"])
def test_gradients_in_bfloat16_point_where_those_in_float32_do(net: Net, images: Tensor, runner: str) -> None:
    if runner == "openvino":
        pytest.importorskip("openvino")
    wanted = make(net).outcomes(images, CLASSES, IDS, 0, 8, "backward").gradients.flatten(1)
    found = make(net, precision="bf16", runner=runner).outcomes(images, CLASSES, IDS, 0, 8, "backward").gradients
    assert torch.cosine_similarity(found.flatten(1), wanted).min() > 0.995


def test_a_base_that_draws_random_numbers_is_no_graph() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + torch.randn_like(x)).sum((2, 3))

    with pytest.raises(DeclinedError, match=r"runner is 'compiled'.*draws random numbers"):
        make(Noisy(), runner="compiled").prepare("backward", 1)


def test_wrong_gradients_are_declined(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseFunction, "runners", lambda *_: [lambda replicas, classes: (None, replicas.flip(0))])
    with pytest.raises(DeclinedError, match=r"cosine of its gradients to those of autograd is"):
        make(net, runner="compiled").prepare("backward", 1)


def test_a_traced_gradient_has_no_gradients_of_weights(net: Net) -> None:
    examples = torch.rand(2, *SHAPE), torch.zeros(2, 1, dtype=torch.int64)
    graph = traced(gradients.Differentiated(net, cross_entropy), "openvino", torch.float32, examples)
    assert not any("backward" in str(node.target) for node in graph.graph.nodes)  # convolutions again, transposed
    assert sum("convolution" in str(node.target) for node in graph.graph.nodes) == 4


def test_the_base_is_left_as_it_was(images: Tensor) -> None:
    net = Net().train()
    net.second.eval()
    net.head.weight.requires_grad_(False)
    state, modes = torch.get_rng_state(), [part.training for part in net.modules()]
    before = [value.clone() for value in net.state_dict().values()]
    given = images.clone().requires_grad_()
    make(net).outcomes(given.detach(), CLASSES, IDS, 0, 3, "backward")
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, True, True, False, True]
    assert all(p.grad is None for p in net.parameters())


def test_what_is_not_finite_casts_no_vote_and_harms_no_neighbour(net: Net, images: Tensor) -> None:
    broken = images.clone()
    broken[1] = torch.nan
    one = make(net, micro_batch=16)
    found, wanted = (one.outcomes(given, CLASSES, IDS, 0, 4, "backward") for given in (broken, images))
    assert found.votes[1].sum() == 0
    rest = torch.tensor([0, 2, 3, 4])
    assert same(at(found, rest), at(wanted, rest))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "logits"}, "average is 'logits'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
    ],
)
def test_bad_arguments(net: Net, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(net, **options)


def test_a_base_that_returns_no_logits() -> None:
    with pytest.raises(ValueError, match=r"turns 2 images into \(2, 3, 6, 5\); it must return logits"):
        make(nn.Identity())
