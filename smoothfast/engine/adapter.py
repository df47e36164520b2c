"""Base classifiers as people have them, made networks from replicas to logits.

One pass on two black images finds out which layout and precision a base classifier takes, what of its answer are the
logits, and of how many classes. Everything that runs one asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from operator import attrgetter, itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..checks import told
from ..integers import IntegerResNet
from ..layers import without_noise
from ..modules import device_of, evaluating, parts, warn, weights_sha256
from ..normalization import Normalization
from ..quantization import calibrated, quantize
from ..runners.calibrated import Calibrated
from ..runners.choice import Workload, measure
from ..runners.expressions import MismatchError
from ..runners.fused import resembles
from ..runners.precision import DTYPES, in_precision, resolve_precision, strict_arithmetic
from ..text import one_line
from ..turns import Turns

OWN = {torch.float64: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""The precision of replicas for networks with weights of another dtype than float32, which compute in their own."""

LAYOUTS = {torch.channels_last: "channels_last", torch.contiguous_format: "contiguous"}

NO_GRADIENT = (
    "the base classifier is a network in integers, whose gradient is zero almost everywhere: attack the network that "
    "it was made of, and judge by the votes of this one; or attack by forward passes alone, with NAttack or Square"
)
IN_INTEGERS = (
    "the base classifier is quantised to integers, as precision='int8' asks; other hardware may make others of it: for "
    "certificates that anybody can replay quantise it once, and keep the file"
)
BY_OPENVINO = (
    "the base classifier is quantised to 8 bits by OpenVINO, as precision='int8' asks; votes are not the same on every "
    "processor, as those of CIFAR ResNets are"
)

_SAID: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # what was adapted, once for a base classifier


@dataclass(frozen=True, eq=False)
class Adapted:
    """A base classifier as a network from replicas to logits, and what it takes.

    Attributes:
        network: replicas [B, ...] to logits [B, K]; the base classifier itself where nothing stands between.
        shape: of an image.
        precision: "fp32", "bf16", "fp16" or "int8".
        layout: of replicas.
        num_classes: K.
        notes: what was adapted, for records.
    """

    network: nn.Module
    shape: tuple[int, ...]
    precision: str
    layout: torch.memory_format
    num_classes: int
    notes: Mapping[str, str] = field(default_factory=dict)

    def of(self, base: nn.Module) -> tuple[Any, ...] | None:
        """Returns what was found, if it is of this base classifier."""
        inner = self.network.base if isinstance(self.network, Adaptation) else self.network
        if inner is not base:
            return None
        return self.shape, self.precision, self.layout, self.num_classes, self.notes

    @cached_property
    def workload(self) -> Workload:
        """The work of the network on an image."""
        return measure(self.network, self.shape)


class Adapter:
    """The place where base classifiers enter. It keeps what it found out last, as long as that is asked again."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._found: dict[bool, tuple[Any, Adapted]] = {}  # by whether gradients are wanted
        self._quantised: tuple[Any, IntegerResNet | Calibrated] | None = None

    def __call__(
        self, base: nn.Module, shape: Sequence[int], precision: str = "auto", gradient: bool = False
    ) -> Adapted:
        """Adapts a base classifier for images [C, ...] of a shape. Warns of what it adapts.

        Args:
            precision: "fp32", "bf16", "fp16"; "auto" is bf16 where hardware and base classifier compute in it. A
                network whose weights are not float32 computes in their dtype, whatever it is, and one in integers in
                "int8".
            gradient: whether the gradient of the logits by the images is wanted too.

        Raises:
            ValueError: the weights are of several dtypes, no logits of at least two classes are returned, or there is
                no gradient.
            Exception: whatever the base classifier raises in every layout and precision.
        """
        dtypes = {parameter.dtype for parameter in base.parameters()}
        key = [id(part) for part in base.modules()], device_of(base), dtypes, tuple(shape), precision
        with self._turns.taken():
            former_key, former = self._found.get(gradient, (None, None))
            if former is None or key != former_key:
                former = adapted(Pass(base, tuple(shape), gradient), precision, former)
                self._found[gradient] = key, former
            return former

    def quantised(
        self, base: nn.Module, shape: tuple[int, ...], sigma: Sequence[float], normalize: Normalization | None
    ) -> IntegerResNet | Calibrated:
        """A base classifier in 8 bits, for noise and normalisation: a CIFAR ResNet in integers, others by OpenVINO.
        Warns when it makes one.

        Raises:
            ValueError: images have another rank, or the quantiser of OpenVINO is not installed.
        """
        key = weights_sha256(base), parts(base), shape, tuple(sigma), str(normalize)
        with self._turns.taken():
            if self._quantised is None or self._quantised[0] != key:
                made, said = in_8_bits(base, shape, sigma, normalize)
                self._quantised = key, made
                warn(said)
            return self._quantised[1]

    def look_again(self) -> None:
        """Lets the next call ask the base classifier anew: nobody can see whether its code or attributes changed."""
        self._found = {gradient: (None, found) for gradient, (_, found) in self._found.items()}


def in_8_bits(
    base: nn.Module, shape: tuple[int, ...], sigma: Sequence[float], normalize: Normalization | None
) -> tuple[IntegerResNet | Calibrated, str]:
    """Quantises a base classifier, and says how."""
    why = ""
    if resembles(base, shape):
        try:
            return quantize(base, sigma, normalize), IN_INTEGERS
        except MismatchError as error:
            why = f" ({one_line(str(error))})"
    return calibrated(base, shape, sigma, normalize), BY_OPENVINO + why


def adapted(look: Pass, precision: str, former: Adapted | None) -> Adapted:
    """Finds out what a base classifier takes and returns, by passes; see `Adapter`.

    Args:
        former: what was found before, which is returned where it still holds.
    """
    refused: dict[Any, Exception] = {}
    for chosen, layout in look.attempts(precision):
        try:
            output = elsewhere(look.output, chosen, layout) if look.gradient else look.output(chosen, layout)
            break
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whatever stands in somebody's forward
            refused[chosen, layout] = error
    else:
        raise _told(refused[chosen, layout], look.shape)
    (path, logits_of), own = form(output), look.own
    notes = {"logits": f"output{path}"} if path else {}
    if own is not None:
        notes["dtype"] = str(own)
    if refused and layout == torch.contiguous_format and len(look.shape) == 3:
        notes["layout"] = LAYOUTS[layout]
    if any(tried != chosen for tried, _ in refused):
        notes["precision"] = chosen
    num_classes = count_classes(logits_of(output))
    if _are_probabilities(logits_of(output)) and look.base not in _SAID:
        _SAID[look.base] = ""
        warn(
            "the base classifier returns probabilities: votes are right, but soft voting and gradients take the "
            "softmax of them once more; leave out its own"
        )
    if former is not None and former.of(look.base) == (look.shape, chosen, layout, num_classes, notes):
        return former
    if notes:
        said = ", ".join(f"{name} {value}" for name, value in notes.items())
        why = f" (otherwise it raises: {one_line(str(next(iter(refused.values()))))!s:.200})" if refused else ""
        why += "; as float32, with precision='auto', more runners take it" if own is not None else ""
        if _SAID.get(look.base) != said:
            _SAID[look.base] = said
            warn(f"the base classifier is adapted: {said}{why}")
    network = Adaptation(look.base, logits_of, own) if path or own is not None else look.base
    return Adapted(network, look.shape, chosen, layout, num_classes, notes)


class Pass:
    """A pass of a base classifier on two black images [C, ...], with the gradient by them if that is wanted.

    Attributes:
        own: the dtype that it computes in, where that of its weights is not float32.
    """

    def __init__(self, base: nn.Module, shape: tuple[int, ...], gradient: bool) -> None:
        self.base, self.shape, self.gradient = base, shape, gradient
        self.device, self.own = device_of(base), own_dtype(base)
        if gradient and isinstance(base, IntegerResNet):
            raise ValueError(NO_GRADIENT)

    def attempts(self, precision: str) -> Iterator[tuple[str, torch.memory_format]]:
        """The precisions and layouts to be tried, in order: bf16 that nobody asked for gives way to float32 at last."""
        if isinstance(self.base, IntegerResNet):
            return product(["int8"], LAYOUTS)
        chosen = resolve_precision(precision, self.device) if self.own is None else OWN[self.own]
        gives_way = precision == "auto" and self.own is None and chosen != "fp32"
        layouts = LAYOUTS if len(self.shape) == 3 else [torch.contiguous_format]
        return product([chosen, "fp32"] if gives_way else [chosen], layouts)

    def output(self, precision: str, layout: torch.memory_format) -> Any:
        """Runs it; no generator of torch is the worse for it."""
        dtype = DTYPES[precision]
        if self.gradient and any(parameter.is_inference() for parameter in self.base.parameters()):
            raise ValueError(
                "the base classifier was made under torch.inference_mode, where weights have no gradients: make it "
                "outside, or attack it by forward passes alone, with NAttack or Square"
            )
        drawing = torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])
        recording = torch.enable_grad() if self.gradient else torch.no_grad()
        plain = torch.inference_mode(False), recording, strict_arithmetic(self.device), ByMemory(layout)
        with ExitStack() as stack:
            for context in (drawing, evaluating(self.base), without_noise(self.base), *plain):
                stack.enter_context(context)
            images = torch.zeros(2, *self.shape, dtype=self.own or dtype, device=self.device)
            images = images.contiguous(memory_format=layout).requires_grad_(self.gradient)
            output = in_precision(self.base, dtype, self.device)(images)
            if self.gradient:
                _require_gradient(form(output)[1](output), images)
        return output


class ByMemory(TorchFunctionMode):
    """Refuses `as_strided` on images that do not lie in memory as their shape says: it would return other pixels."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Calls a function of torch."""
        if self.layout != torch.contiguous_format and getattr(function, "__name__", "") == "as_strided":
            raise RuntimeError(f"as_strided reads images by their memory, which is {LAYOUTS[self.layout]}")
        return function(*arguments, **(named or {}))


def elsewhere(act: Callable[..., Any], *arguments: Any) -> Any:
    """Acts in a thread of its own. AutoAttack traces the one that calls a model, and takes a gradient that is computed
    within `forward` for a defence."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(act, *arguments).result()


def _require_gradient(logits: Tensor, images: Tensor) -> None:
    """Raises ValueError where logits do not depend on images in a way that autograd sees, as a zero would be taken for
    the gradient of a robust model."""
    total = logits.float().sum()
    if not total.requires_grad or torch.autograd.grad(total, images, allow_unused=True)[0] is None:
        raise ValueError(
            "the base classifier has no gradient by its images (its layers are quantised, or it goes by NumPy, "
            "`detach` or `torch.no_grad`): attack it by forward passes alone, with NAttack or Square"
        )


def own_dtype(base: nn.Module) -> torch.dtype | None:
    """The dtype that the weights of a network have, where it is not float32.

    Raises:
        ValueError: they have several.
    """
    found = {parameter.dtype for parameter in base.parameters() if parameter.is_floating_point()} - {torch.float32}
    if found and (len(found) > 1 or found - OWN.keys() or any(p.dtype == torch.float32 for p in base.parameters())):
        kinds = ", ".join(sorted({str(parameter.dtype) for parameter in base.parameters()}))
        raise ValueError(
            f"the base classifier has weights of {kinds}; keep them float32, and choose by precision what is "
            "computed in"
        )
    return next(iter(found), None)


def form(output: Any) -> tuple[str, Callable[[Any], Any]]:
    """The place of the logits in the output of a base classifier, as text, and what takes them out."""
    if isinstance(output, Tensor):
        return "", _itself
    if isinstance(output, np.ndarray):
        return " as a tensor", torch.from_numpy
    if isinstance(getattr(output, "logits", None), Tensor):
        return ".logits", attrgetter("logits")
    if isinstance(output, Mapping) and output:
        key = "logits" if "logits" in output else next(iter(output))
        if key == "logits" or len(output) == 1:
            return f"[{key!r}]", itemgetter(key)
    if isinstance(output, (tuple, list)) and output:
        return "[0]", itemgetter(0)
    keys = f" with {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""
    made = "; a function that makes networks is to be called first" if isinstance(output, nn.Module) else ""
    raise ValueError(
        f"the base classifier returns {type(output).__name__}{keys}; it must return logits [B, K], alone, first in a "
        f"tuple, or as 'logits'{made}"
    )


def count_classes(logits: Any) -> int:
    """K of the logits [2, K] of two images.

    Raises:
        ValueError: they are something else.
    """
    if isinstance(logits, Tensor) and not logits.is_floating_point():
        raise ValueError(f"the base classifier returns logits of {logits.dtype}; they must be floating")
    if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 2 and logits.shape[1] > 1:
        return logits.shape[1]
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    hint = "; of one logit z for two classes make torch.stack([-z, z], 1)" if found in ((2,), (2, 1)) else ""
    raise ValueError(
        f"the base classifier turns 2 images into {found}; it must return logits [2, K] of 2 classes or more{hint}"
    )


def _are_probabilities(logits: Tensor) -> bool:
    """Tells whether logits look like the results of a softmax."""
    sums = logits.float().sum(1)
    return bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


class Adaptation(nn.Module):
    """A base classifier that is fed in the dtype of its weights, and of whose output the logits are taken."""

    def __init__(self, base: nn.Module, logits_of: Callable[[Any], Any], dtype: torch.dtype | None) -> None:
        super().__init__()
        self.base, self.logits_of, self.dtype = base, logits_of, dtype
        self.training = base.training

    def forward(self, replicas: Tensor) -> Any:
        """Logits [B, K] of replicas [B, ...]."""
        return self.logits_of(self.base(replicas if self.dtype is None else replicas.to(self.dtype)))


def _told(error: Exception, shape: tuple[int, ...]) -> Exception:
    """The error of a base classifier; of images of a shape that it does not take, one that says so."""
    if not isinstance(error, (RuntimeError, TypeError)) or isinstance(error, NotImplementedError):
        return error
    hint = ""
    if "in-place operation" in str(error):
        hint = "; its forward changes the images that it is given: let it work on a copy"
    elif len(shape) == 2:
        hint = "; one image is [1, C, H, W]"
    elif "channels" in str(error):
        hint = "; channels come second: [N, C, ...]"
    size = ", ".join(map(str, shape))
    said = ValueError(f"images are [N, {size}], which the base classifier does not take ({told(error)}){hint}")
    said.__cause__ = error
    return said


def _itself(output: Any) -> Any:
    return output
