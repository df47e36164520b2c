"""Base classifiers as people have them: what the adapter finds out, and that every way in goes through it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import smoothfast as sf
from smoothfast.attacks import EPGD, PGD, Square
from smoothfast.engine import Adapter
from smoothfast.evaluation import base_votes
from smoothfast.modules import shared_copy
from smoothfast.runners.precision import resolve_precision
from smoothfast.smoothing import Smooth

CLASSES, SHAPE = 4, (3, 8, 8)
IMAGES = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLOATS, LABELS = IMAGES.float() / 255, torch.tensor([0, 1, 2])
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.filterwarnings("ignore:the base classifier is adapted"),
    pytest.mark.filterwarnings("ignore:torch:DeprecationWarning"),  # .ao.quantization, .jit
    pytest.mark.filterwarnings("ignore:quantized:UserWarning"),
]


class Net(nn.Module):
    """A network as tutorials have it, which flattens by `view`, or by `flatten`."""

    def __init__(self, by_view: bool = True, classes: int = CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.conv, self.linear, self.by_view = nn.Conv2d(3, 6, 3), nn.Linear(6 * 9, classes), by_view
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.linear(x.view(-1, 54) if self.by_view else x.flatten(1))


class Answers(nn.Module):
    """A network that answers in some form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.form = Net(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.net(x))


class Result:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def smoothed(base: Any, **options: Any) -> sf.SmoothedClassifier:
    return sf.SmoothedClassifier(base, 0.1, **{"samples": 4, "runner": "eager", "precision": "fp32"} | options)


WAYS: dict[str, Callable[[Any], Tensor]] = {
    "certify": lambda base: smoothed(base).certify(IMAGES, n0=10, n=50).counts,
    "predict": lambda base: smoothed(base).predict(IMAGES, n=50).counts,
    "forward": lambda base: smoothed(base)(IMAGES),
    "soft": lambda base: smoothed(base, voting="soft")(IMAGES),
    "soft gradient": lambda base: smoothed(base, voting="soft")(FLOATS.clone().requires_grad_()).detach(),
    "differentiable": lambda base: smoothed(base).differentiable(4)(FLOATS),
    "attack": lambda base: EPGD(smoothed(base), 0.1, steps=2, samples=2, runner="eager")(IMAGES, LABELS),
    "attack of the base": lambda base: PGD(base, 0.1, steps=2, runner="eager", precision="fp32")(IMAGES, LABELS),
    "base_votes": lambda base: base_votes(base, IMAGES),
    "Smooth": lambda base: torch.tensor(Smooth(base, CLASSES, 0.1).certify(FLOATS[0], 10, 50, 0.01, 50)),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@every_way
def test_a_network_that_flattens_by_view(way: Callable[[Any], Tensor]) -> None:
    torch.testing.assert_close(way(Net().eval()), way(Net(by_view=False).eval()), rtol=1e-4, atol=1e-4)


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "output[0]": lambda logits: (logits, logits[:, :1]),
    "output['logits']": lambda logits: {"features": logits[:, :1], "logits": logits},
    "output['out']": lambda logits: {"out": logits},
    "output.logits": Result,
}


@every_way
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_answer(form: Callable[[Tensor], Any], way: Callable[[Any], Tensor]) -> None:
    assert torch.equal(way(Answers(form).eval()), way(Net().eval()))


@every_way
def test_a_function(way: Callable[[Any], Tensor]) -> None:
    net = Net().eval().requires_grad_(False)
    assert torch.equal(way(lambda x: net(x)), way(net))


WRONG: dict[str, tuple[Any, str]] = {
    "one logit": (nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), "(2, 1); it must return logits [2, K] of 2 classes"),
    "no classes": (lambda x: x.sum((1, 2, 3)), "turns 2 images into (2,)"),
    "no logits": (lambda x: {"a": x, "b": x}, "returns dict with 'a', 'b'; it must return logits [B, K]"),
    "text": (lambda x: "cat", "returns str; it must return logits [B, K]"),
}


@every_way
@pytest.mark.parametrize(("base", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_logits_is_named(base: Any, message: str, way: Callable[[Any], Tensor]) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        way(base)


@pytest.mark.parametrize("way", ["certify", "forward", "differentiable", "soft gradient"])
def test_another_number_of_classes_than_given_is_named(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "smoothed", lambda base, **options: sf.SmoothedClassifier(base, 0.1, 7, **options))
    with pytest.raises(ValueError, match="num_classes is 7; the base classifier returns logits of 4"):
        WAYS[way](Net().eval())


def test_what_cannot_be_called_is_named() -> None:
    for call in (lambda: smoothed("net.pt"), lambda: PGD(None), lambda: base_votes(3, IMAGES)):
        with pytest.raises(ValueError, match=r"is .*; it must be a module or a function from images to logits"):
            call()


def test_what_was_adapted_is_in_meta_and_said_once() -> None:
    model = smoothed(Answers(FORMS["output[0]"]).eval())
    with pytest.warns(UserWarning, match=r"adapted: logits output\[0\], layout contiguous \(otherwise") as said:
        meta = model.certify(IMAGES, n0=10, n=50).meta
    assert meta["adapted"] == {"logits": "output[0]", "layout": "contiguous"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(IMAGES, n=20)
    assert len(said) == 1
    assert "adapted" not in smoothed(Net(by_view=False).eval()).certify(IMAGES, n0=10, n=50).meta


def test_classes_are_found() -> None:
    model = smoothed(Net().eval(), voting="weighted")
    with pytest.raises(ValueError, match="num_classes is None; it is known once"):
        _ = model.num_classes
    assert model(IMAGES[:0]).shape == (0, CLASSES)
    assert model.num_classes == len(model.voting.weights) == CLASSES
    assert torch.equal(model.scores(IMAGES), smoothed(Net().eval(), num_classes=4, voting="weighted").scores(IMAGES))
    with pytest.raises(ValueError, match="voting has 5 weights; there are 4 classes"):
        smoothed(Net().eval(), voting=(1, 1, 1, 1, 1))(IMAGES)
    with pytest.raises(ValueError, match="labels holds 4"):
        smoothed(Net().eval()).certify(IMAGES, n=20, labels=[0, 1, 4])


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float64, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")]
)
def test_networks_compute_in_the_dtype_of_their_weights(dtype: torch.dtype, precision: str) -> None:
    model = smoothed(Net().eval().to(dtype), runner="auto")
    certificate = model.certify(IMAGES, n0=10, n=200)
    assert certificate.meta["adapted"]["dtype"] == str(dtype)
    assert (certificate.meta["precision"], certificate.meta["runner"]) == (precision, "eager")
    wanted = smoothed(Net().eval()).certify(IMAGES, n0=10, n=200)
    assert torch.equal(certificate.labels, wanted.labels)
    torch.testing.assert_close(
        model.differentiable(4)(FLOATS), WAYS["differentiable"](Net().eval()), rtol=0.05, atol=0.05
    )
    assert PGD(model, 0.1, steps=1)(IMAGES, LABELS).dtype == torch.float32


def test_weights_of_several_dtypes_are_refused() -> None:
    net = Net().eval()
    net.linear.half()
    with pytest.raises(ValueError, match=r"has weights of torch.float16, torch.float32; keep them float32"):
        smoothed(net)(IMAGES)


class ByNumpy(nn.Module):
    """A network on a path that bfloat16 cannot go, and no gradient comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.from_numpy(x.detach().numpy().copy()))


class Upscaled(nn.Module):
    """A network whose first operation has no gradient in bfloat16 on CPUs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.interpolate(x, size=8, mode="bicubic", antialias=True))


def test_bf16_gives_way_where_nobody_asked_for_it() -> None:
    meta = smoothed(ByNumpy().eval(), precision="auto").certify(IMAGES, n0=10, n=50).meta
    assert meta["precision"] == "fp32"
    assert meta.get("adapted", {}).get("precision", "fp32") == "fp32"
    assert ("precision" in meta.get("adapted", {})) == (resolve_precision("auto", CPU) != "fp32")
    with pytest.raises(ValueError, match=r"does not take .*BFloat16"):
        smoothed(ByNumpy().eval(), precision="bf16").certify(IMAGES, n0=10, n=50)
    assert PGD(Upscaled().eval(), 0.1, steps=1)(IMAGES, LABELS).shape == IMAGES.shape


def test_a_gradient_that_is_cut_off_is_no_robustness() -> None:
    quantised = torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, dtype=torch.qint8)
    for base in (ByNumpy().eval(), quantised):
        for way in ("attack", "soft gradient"):
            with pytest.raises(ValueError, match="no gradient by its images"):
                WAYS[way](base)
        assert WAYS["certify"](base).sum() == 150
        assert Square(base, 0.1, queries=2)(IMAGES, LABELS).shape == IMAGES.shape


def test_networks_of_other_kinds() -> None:
    plain = Net().eval()
    with torch.inference_mode():
        made = Net().eval()
        inside = WAYS["attack"](plain)

    class WithState(Net):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 2}

        def set_extra_state(self, state: Any) -> None: ...

    for way in ("certify", "differentiable", "attack"):
        wanted = WAYS[way](Net().eval())
        for base in (WithState().eval(), torch.jit.script(Net().eval())):
            torch.testing.assert_close(WAYS[way](base), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(inside, WAYS["attack"](Net().eval()))
    assert torch.equal(WAYS["certify"](made), WAYS["certify"](Net().eval()))


def test_a_single_image_without_its_batch_is_named() -> None:
    with pytest.raises(ValueError, match=r"images are \[N, 8, 8\], which .*; one image is \[1, C, H, W\]"):
        smoothed(Net().eval()).certify(IMAGES[0], n=50)


def test_a_look_leaves_mode_and_generator_as_they_were() -> None:
    base = nn.Sequential(Net(), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    assert Adapter()(base, SHAPE, "fp32").num_classes == CLASSES
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in base.modules())


def test_what_was_found_is_kept_while_it_holds() -> None:
    adapter, base = Adapter(), Answers(FORMS["output[0]"]).eval()
    found = adapter(base, SHAPE, "fp32")
    assert adapter(base, SHAPE, "fp32") is found
    adapter.look_again()
    assert adapter(base, SHAPE, "fp32") is found
    base.form = lambda logits: (logits[:, :3], None)
    assert adapter(base, SHAPE, "fp32") is found  # nobody can see it
    adapter.look_again()
    assert adapter(base, SHAPE, "fp32").num_classes == 3


def test_another_dtype_between_calls_is_seen() -> None:
    model = smoothed(Net().eval())
    wanted = model.votes(IMAGES, 100).argmax(1)
    model.base.double()
    assert torch.equal(model.votes(IMAGES, 100).argmax(1), wanted)
    assert PGD(model, 0.1, steps=1)(IMAGES, LABELS).dtype == torch.float32


@pytest.mark.parametrize("images", [IMAGES.permute(0, 2, 3, 1), IMAGES[:, :1]], ids=["channels last", "grey"])
def test_images_of_another_shape_are_named(images: Tensor) -> None:
    for call in (lambda: smoothed(Net().eval()).votes(images), lambda: PGD(Net().eval(), 0.1)(images, LABELS)):
        with pytest.raises(ValueError, match=r"images are \[N, .*does not take .*; channels come second"):
            call()


def test_attacks_know_the_classes_of_a_smoothed_classifier() -> None:
    for attack in (EPGD, Square):
        with pytest.raises(ValueError, match="num_classes is 7; the base classifier returns logits of 4"):
            attack(smoothed(Net().eval(), num_classes=7), 0.1)(IMAGES, LABELS)


def test_whole_numbers_are_no_logits() -> None:
    with pytest.raises(ValueError, match=r"returns logits of torch.int64; they must be floating"):
        smoothed(lambda x: Net()(x).long())(IMAGES)


def never(*_: Any) -> Any:
    pytest.fail("it was compiled")


class Parent(nn.Module):
    """A network with a part in it that torch.compile made."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(Net(by_view=False), backend=never)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_what_is_compiled_within_a_network_is_called_plain(way: Callable[[Any], Tensor]) -> None:
    in_place = Net(by_view=False)
    in_place.compile(backend=never)
    of_function = torch.compile(Net(by_view=False).forward, backend=never)
    wanted = way(Net(by_view=False))
    for base in (in_place, Parent().eval(), of_function):
        torch.testing.assert_close(way(base), wanted, rtol=0, atol=1e-6)
    assert in_place._compiled_call_impl is not None  # it is the user's, and stays compiled
    with pytest.raises(pytest.fail.Exception, match="it was compiled"):
        in_place(FLOATS)
    torch.testing.assert_close(shared_copy(Parent().eval())(FLOATS), Net(by_view=False)(FLOATS))  # as other lanes have


class Strided(Net):
    """A network that takes images by where they lie in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.as_strided(x.shape, (192, 64, 8, 1)))


def test_images_that_are_read_by_their_memory_lie_as_their_shape_says() -> None:
    model = smoothed(Strided())
    assert torch.equal(model.votes(IMAGES), smoothed(Net()).votes(IMAGES))
    assert model.certify(IMAGES, n0=10, n=50).meta["adapted"] == {"layout": "contiguous"}


def test_a_function_that_makes_networks_is_named() -> None:
    with pytest.raises(ValueError, match=r"returns Net; .* a function that makes networks is to be called first"):
        smoothed(lambda by_view: Net(by_view is None)).votes(IMAGES)


def test_weights_that_can_have_no_gradient_are_named() -> None:
    with torch.inference_mode():
        base = Net()
    assert smoothed(base).votes(IMAGES).sum() == 3000
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode"):
        PGD(base)(FLOATS, LABELS)


def test_what_was_adapted_is_said_once_for_all_that_use_the_network() -> None:
    base = Answers(lambda logits: (logits, None))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            smoothed(base).votes(IMAGES, 4)
            PGD(base, steps=1)(FLOATS, LABELS)
    assert len([each for each in said if "is adapted" in str(each.message)]) == 1


class Decorated(Net):
    """A network whose forward is compiled where its class is written."""

    @torch.compile(backend=never)
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_forward_that_is_compiled_is_called_plain() -> None:
    wanted, method = smoothed(Net()).votes(IMAGES), Net()
    method.forward = torch.compile(method.forward, backend=never)  # type: ignore[method-assign]
    for base in (Decorated(), method):
        assert torch.equal(smoothed(base).votes(IMAGES), wanted)
        PGD(base, steps=1)(FLOATS, LABELS)
        with pytest.raises(pytest.fail.Exception, match="it was compiled"):
            base(FLOATS)


def test_probabilities_are_told_once() -> None:
    base = nn.Sequential(Net(), nn.Softmax(1)).eval()
    with pytest.warns(UserWarning, match="returns probabilities: votes are right"):
        smoothed(base).votes(IMAGES, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smoothed(base).votes(IMAGES, 4)


class Clamped(Net):
    """A network that changes the images that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Masked(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x * mask)


def test_an_error_in_forward_tells_its_place() -> None:
    with pytest.raises(ValueError, match=r"does not take \(TypeError: .* missing 1 required .*: 'mask'"):
        smoothed(Masked()).votes(IMAGES)
    with pytest.raises(ValueError, match=r"test_adapter\.py:\d+, in forward\)\)$"):
        smoothed(Net(classes=5)).votes(torch.zeros(2, 3, 9, 12))
    with pytest.raises(ValueError, match="its forward changes the images that it is given: let it work on a copy"):
        PGD(Clamped())(FLOATS, LABELS)


def test_an_array_of_numpy_is_taken() -> None:
    base = Answers(lambda logits: logits.detach().numpy())
    assert torch.equal(smoothed(base).votes(IMAGES), smoothed(Net()).votes(IMAGES))
    with pytest.raises(ValueError, match="has no gradient by its images"):
        PGD(base)(FLOATS, LABELS)
