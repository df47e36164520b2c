"""The smoothed classifier: g(x) = the class to which the noisy copies of x give most; by default most votes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import ops
from .costs import AUTO, Network, candidates, measure
from .engine import Engine, Job, default_micro_batch, resolve_precision
from .layers import draws_noise
from .noise import MAX_IMAGE_ID, Law, Stream, float_law, gaussian_law, lattice_law, no_noise, stream_key, uniform
from .noisy_network import NoisyNetwork
from .procedures import ABSTAIN, Count, Decision, Procedure, Total, certify_procedure, predict_procedure
from .runners import Kept, device_of, fingerprint
from .specs import at_least, choice
from .voting import log_scores, resolve

if TYPE_CHECKING:
    from .soft import SoftClassifier

NOISES = ("lattice", "gaussian")

LEAST_U = 0.05  # of randomized bounds


@dataclass(frozen=True, eq=False)
class Prediction:
    """What PREDICT returns.

    Attributes:
        labels: int64 [N], ABSTAIN (-1) where the votes do not decide.
        counts: int64 [N, K] votes by class.
        p_values: float64 [N] of the test of the two largest counts.
        samples: int64 [N] noisy copies drawn.
    """

    labels: Tensor
    counts: Tensor
    p_values: Tensor
    samples: Tensor


@dataclass(frozen=True, eq=False)
class Certificate:
    """What CERTIFY returns: around image i, up to `radii[i]` in L2, the smoothed classifier returns `labels[i]`.

    Attributes:
        labels: int64 [N], ABSTAIN (-1) where nothing is certified.
        radii: float64 [N] in [0, 1] pixel units, rounded down; 0 when abstaining. Each is wrong with probability at
            most alpha.
        p_lower, p_upper: float64 [N], bounds of the probability of the label and of every other class.
        counts: int64 [N, K] votes of the estimation samples.
        invalid: int64 [N] of them without a class (logits that are not finite); they count as a rival.
        samples: int64 [N] noisy copies drawn, selection included.
        decisions: [N] "certified", "undecided" (nothing shown with the samples allowed), or, by method "sequential",
            "not certified" (the radius, by `bound`, is shown to be less than the one asked for).
        alpha, sigma, seed: what the certificate holds for.
        sound: whether it holds in the arithmetic actually used: lattice noise on uint8 images, a base classifier that
            is one fixed function of each noisy image, every rounding directed.
        meta: all that is needed to replay it.
    """

    labels: Tensor
    radii: Tensor
    p_lower: Tensor
    p_upper: Tensor
    counts: Tensor
    invalid: Tensor
    samples: Tensor
    decisions: list[str]
    alpha: float
    sigma: float
    seed: int
    sound: bool
    meta: dict[str, Any]


class SmoothedClassifier(nn.Module):
    """A base classifier, smoothed: a drop-in module, and the procedures PREDICT and CERTIFY of Cohen et al. 2019.

    `forward` draws new samples at every call; `scores`, `top`, `votes`, `predict` and `certify` are pure functions of
    the seed, the images and their ids. The base classifier runs in eval mode and is left in the mode it was in.

    Args:
        base: any module from images [B, C, H, W] to logits [B, K].
        sigma: standard deviation of the noise, in [0, 1] pixel units; one number, or one per channel (a certificate
            then uses the smallest). 0 where `base` has noise of its own (`layers`), which then is all there is.
        num_classes: K.
        samples: noisy copies per image in `forward`.
        voting: what a copy gives each class (Nemcovsky et al. 2019, arXiv 1911.07198, eq. 8-13). "prediction": 1 to its
            most probable class, a vote; "soft": the probability; "logit": the logit, clamped to -4096 .. 4096;
            "weighted": 2^-(k-1) to the class of rank k. Or weights by rank, as (1, 0.5); later ranks get nothing. A
            copy whose logits are not finite gives nothing. Tests and certificates are of votes: `votes`, `predict` and
            `certify` take "prediction" alone.
        normalize: (mean, std) per channel, fused into the noise kernel; None where `base` normalises itself.
        noise: "lattice" (exact, needs uint8 images) or "gaussian"; None takes lattice for uint8 and gaussian for
            float images.
        seed: of all noise, 0 .. 2**64 - 1.
        precision: "fp32", "bf16", "fp16", or "auto": bf16 where the hardware multiplies in it.
        max_batch: rows per forward pass of the base classifier; bounds memory whatever `samples` and n are.
        runner: "eager"; "compiled": up to twice as fast after some seconds of compilation (about 18 for ResNet-20);
            "openvino", where it is installed: as fast on CPUs after fewer (2 for ResNet-20, 6 for ResNet-110);
            "fused": CIFAR ResNets on CPUs with AMX or AVX512-BF16, in bf16 (docs/engine.md); or "auto": the one that
            takes least for the samples of one image (`costs`), and the next where that one cannot take the network.
        clip: clamp noisy images to their range; the clamp is then part of the base classifier.
        deterministic: let every call of `forward` repeat the same samples. An attacker then faces a deterministic
            model: say so beside any robustness figure.

    Raises:
        ValueError: an argument is out of its range.
    """

    sigma: Tensor

    def __init__(
        self,
        base: nn.Module,
        sigma: float | Sequence[float],
        num_classes: int,
        samples: int = 64,
        voting: str | Sequence[float] = "prediction",
        normalize: ops.Statistics | None = None,
        noise: str | None = None,
        seed: int = 0,
        precision: str = "auto",
        max_batch: int | None = None,
        *,
        runner: str = "auto",
        clip: bool = False,
        deterministic: bool = False,
    ) -> None:
        super().__init__()
        choice("runner", runner, AUTO)
        if noise is not None:
            choice("noise", noise, NOISES)
        at_least(2, num_classes=num_classes)
        self.voting = resolve(voting, num_classes)
        at_least(1, samples=samples, max_batch=max_batch)
        stream_key(index(seed), Stream.PREDICT)  # checks it
        self.base = base
        sigmas = float_law(sigma).sigma if draws_noise(base) else gaussian_law(sigma).sigma
        self.register_buffer("sigma", torch.tensor(sigmas, dtype=torch.float64))
        self.num_classes, self.samples, self.normalize, self.noise, self.seed = (
            num_classes,
            samples,
            normalize,
            noise,
            seed,
        )
        self.precision, self.max_batch, self.runner, self.clip = precision, max_batch, runner, clip
        self.deterministic = deterministic
        self.training = base.training  # packages that put back the mode they found would train the base classifier
        self._engines = Kept[Engine]()
        self._network: tuple[Any, Network] | None = None
        self.reset()

    def reset(self) -> None:
        """The next call of `forward` starts again from the first sample."""
        self._next_sample = 0

    def forward(self, images: Tensor) -> Tensor:
        """Log-scores float32 [N, K] of images [N, C, H, W]; their argmax is the prediction.

        They are finite, and in the order of what the copies gave: `voting.log_scores` has the formulas; the score of a
        class with c of n votes is log((c + 1/2) / (n + K/2)). Every call draws samples that were not drawn before,
        unless `deterministic`, and none that `scores`, `votes`, `predict` or `certify` draw.

        Votes, weighted or not, have no gradient: whoever asks for one gets a ValueError that names `differentiable`.
        Soft and logit voting have, with respect to float images and to the parameters of the base classifier. Where
        autograd is on and one of these requires a gradient, the same samples go through the base classifier by plain
        PyTorch: slower, the same values up to rounding, and NaN where a logit is not finite. Predictions alone are
        faster under `torch.no_grad()`.
        """
        first = 0 if self.deterministic else self._next_sample
        self._next_sample = first + self.samples
        images = finite_images(images)
        if self.voting.differentiable and self._gradient_is_asked(images):
            from .soft import Average  # stands above this module

            net = NoisyNetwork(self.base)
            average = Average(self, net, net.run, self._law(images), Stream.FORWARD, self.voting.name)
            return average.scores(images, first, self.samples)
        decisions = self._decide_alike(images.detach(), None, self._count(self.samples, first, Stream.FORWARD))
        counts = self._stack(decisions, "counts").to(images.device)
        scores = log_scores(self.voting, counts, self.samples).float()
        return scores if self.voting.differentiable else _WithoutGradient.apply(images, scores, self.voting.name)

    def _gradient_is_asked(self, images: Tensor) -> bool:
        tensors = (images, *self.base.parameters())
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    def differentiable(self, samples: int = 8, max_batch: int | None = None) -> SoftClassifier:
        """The classifier by mean probabilities (by mean logits if that is its voting) instead of votes, for gradient
        attacks of other packages.

        Args:
            samples: noisy copies per image in each of its calls.
            max_batch: rows per pass of the base classifier; that of this classifier if not given.
        """
        from .soft import SoftClassifier  # stands above this module

        return SoftClassifier(self, samples, max_batch)

    def scores(self, images: Tensor, samples: int = 1000, image_ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """What the first `samples` noisy copies of each image give each class by the voting rule, their mean: float64
        [N, K]. By "prediction" it is the share of votes."""
        decisions = self._decide_alike(checked_images(images), image_ids, self._count(samples))
        return self._stack(decisions, "counts").double() * (self.voting.unit / samples)

    def top(
        self, images: Tensor, k: int, samples: int = 1000, image_ids: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The k classes with the largest `scores`, largest first and the lower one on ties: int64 [N, k].

        With votes these are the classes that most copies put first. `mcpredict` in the code of Nemcovsky et al. is
        something else: its j-th class is the one that most copies put in place j, among those not yet returned, and is
        spurious (the lowest class left) where none of these has a vote there.
        """
        at_least(1, k=k)
        if k > self.num_classes:
            raise ValueError(f"k is {k}; it must be at most {self.num_classes}, the classes")
        decisions = self._decide_alike(checked_images(images), image_ids, self._count(samples))
        return self._stack(decisions, "counts").argsort(dim=1, descending=True, stable=True)[:, :k]

    def votes(self, images: Tensor, samples: int = 1000, image_ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """Votes by class, int64 [N, K], of the first `samples` noisy copies of each image."""
        self._require_votes("votes")
        return self._stack(self._decide_alike(checked_images(images), image_ids, self._count(samples)), "counts")

    def predict(
        self,
        images: Tensor,
        n: int = 1000,
        alpha: float = 0.001,
        method: str = "fixed",
        image_ids: Sequence[int] | Tensor | None = None,
    ) -> Prediction:
        """PREDICT: the most probable class under noise, wrong with probability at most alpha, or ABSTAIN.

        Args:
            images: uint8 (0..255) or float (0..1) [N, C, H, W].
            n: samples per image, the most of them for "sequential"; at least 11 at alpha 0.001.
            alpha: error level per image.
            method: "fixed", or "sequential": stops as soon as the votes decide, after 16 samples at the least.
            image_ids: [N], the numbers the noise is drawn under; 0..N-1 if not given.
        """
        self._require_votes("predict")
        decisions = self._decide_alike(checked_images(images), image_ids, lambda: predict_procedure(method, n, alpha))
        return Prediction(
            self._stack(decisions, "label"),
            self._stack(decisions, "counts"),
            self._stack(decisions, "p_value"),
            self._stack(decisions, "samples"),
        )

    def certify(
        self,
        images: Tensor,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        method: str = "fixed",
        bound: str = "multiclass",
        image_ids: Sequence[int] | Tensor | None = None,
        *,
        radius: float | None = None,
        tolerance: float | None = None,
        labels: Sequence[int] | Tensor | None = None,
        randomize: bool = False,
    ) -> Certificate:
        """CERTIFY: a class and an L2 radius within which it stays the prediction, wrong with probability at most alpha.

        Args:
            images: uint8 (0..255) or float (0..1) [N, C, H, W]. Only uint8 images give sound certificates.
            n0: samples that select the class.
            n: other samples that bound its probability; the most of them where the method stops early.
            alpha: error level per image.
            method: "fixed": the radius after n samples; "sequential": is it at least `radius`?; "tolerance": a radius
                that aims to be at most `tolerance` below the one of "fixed" (see `procedures.ToleranceCertify`).
            bound: "multiclass" (sigma/2 (Phi^-1(p_A) - Phi^-1(p_B))) or "cohen" (p_B = 1 - p_A).
            image_ids: [N], the numbers the noise is drawn under; 0..N-1 if not given.
            radius: for "sequential", in [0, 1] pixel units.
            tolerance: for "tolerance", in units of sigma.
            labels: [N] classes to certify, known beforehand, in place of those that n0 samples select. None of them may
                come from a look at the same samples.
            randomize: bounds after Stevens 1950, which depend on one uniform number an image (stream RANDOMIZE). Valid,
                but radii then depend on luck: at n = 10,000 by less than 0.001 sigma where a tenth of the votes go
                elsewhere, by 0.03 in the median and 0.16 at most where all agree.
        """
        self._require_votes("certify")
        sigma = min(self.sigma.tolist())
        if not sigma:
            raise ValueError("sigma is 0; a radius takes noise on images")
        ids = checked_ids(image_ids, len(images))
        classes = None if labels is None else checked_labels(labels, len(images), self.num_classes)

        def procedure(label: int | None, u: float, deviation: float) -> Procedure:
            return certify_procedure(method, n0, n, alpha, sigma, bound, radius, tolerance, label, u, deviation)

        def of_image(position: int, image_id: int) -> Procedure:
            label = None if classes is None else classes[position]
            # A smaller u would give radii that mean nothing: infinite ones where it is below alpha.
            u = max(uniform(self.seed, image_id), LEAST_U) if randomize else 1.0
            return procedure(label, u, engine.deviation)

        most = procedure(None if classes is None else 0, LEAST_U if randomize else 1.0, 0.0).most  # arguments, checked
        images = checked_images(images)
        engine = self.engine(images, most)
        decisions = self._decide(engine, images, ids, of_image)
        settings = {
            "n0": n0,
            "n": n,
            "alpha": alpha,
            "method": method,
            "bound": bound,
            "radius": radius,
            "tolerance": tolerance,
            "labels": classes,
            "randomize": randomize,
            "image_ids": ids,
        }
        return Certificate(
            labels=self._stack(decisions, "label"),
            radii=self._stack(decisions, "radius"),
            p_lower=self._stack(decisions, "p_lower"),
            p_upper=self._stack(decisions, "p_upper"),
            counts=self._stack(decisions, "counts"),
            invalid=self._stack(decisions, "invalid"),
            samples=self._stack(decisions, "samples"),
            decisions=[decision.outcome for decision in decisions],
            alpha=alpha,
            sigma=sigma,
            seed=self.seed,
            sound=is_sound(engine) and self.engine(images, most) is engine,  # a base that changes itself is no function
            meta={
                **settings,
                **engine.meta,
                "declined": self._engines.declined,
                "sigma": self.sigma.tolist(),
                "seed": self.seed,
                "normalize": self.normalize,
            },
        )

    def engine(self, images: Tensor, passes: int = 0) -> Engine:
        """The engine for images [N, C, H, W] of this shape and dtype; built anew when these or the weights change.

        Args:
            passes: forward passes that are to come; runner "auto" chooses by them.
        """
        return self._engines.first(
            self.candidates(images, passes), partial(self._engine_key, images), partial(self._build, images)
        )

    def candidates(self, images: Tensor, passes: int) -> list[str]:
        """Runners for so many forward passes on images of this shape, the one to be preferred first."""
        if self.runner != "auto":
            return [self.runner]
        device = device_of(self.base)
        return candidates(self.network(images), passes, resolve_precision(self.precision, device), device)

    def network(self, images: Tensor) -> Network:
        """What the base classifier computes for an image of this shape."""
        key = images.shape[1:], [id(part) for part in self.base.modules()]
        if self._network is None or self._network[0] != key:
            self._network = key, measure(self.base, tuple(images.shape[1:]))
        return self._network[1]

    def _build(self, images: Tensor, runner: str) -> Engine:
        if self.base.training:
            warnings.warn("the base classifier is in train mode; it runs in eval mode here", stacklevel=7)
        channels, height, width = images.shape[1:]
        return Engine(
            self.base,
            self._law(images),
            (channels, height, width),
            torch.uint8 if images.dtype == torch.uint8 else torch.float32,
            self.num_classes,
            self.seed,
            self.normalize,
            self.precision,
            self.micro_batch(images),
            runner,
            self.clip,
            (self.voting,),
        )

    def micro_batch(self, images: Tensor) -> int | None:
        """Rows per forward pass; None: by image size and device. Where only one sample of an image can be in a
        micro-batch, no more than there are images."""
        if self.max_batch is not None or not draws_noise(self.base):
            return self.max_batch
        usual = default_micro_batch(images.shape[1:], device_of(self.base))
        return min(usual, 2 ** (max(1, len(images)) - 1).bit_length())

    def _engine_key(self, images: Tensor, runner: str) -> Any:
        batch = self.micro_batch(images)
        choices = (self.seed, self.normalize, self.noise, self.precision, batch, self.clip, self.voting)
        kind = (images.shape[1:], images.dtype == torch.uint8, tuple(self.sigma.tolist()))
        return fingerprint(self.base, runner), kind, choices

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a checkpoint of this module, or a plain one of its base classifier."""
        if not any(name.startswith("base.") for name in state_dict):
            state_dict = {f"base.{name}": value for name, value in state_dict.items()} | {"sigma": self.sigma}
        return super().load_state_dict(state_dict, strict, assign)

    def _decide(
        self, engine: Engine, images: Tensor, ids: list[int], procedure: Callable[[int, int], Procedure]
    ) -> list[Decision]:
        """The decisions on images; `procedure` makes that of the image at a position, with an id."""
        jobs = (
            Job(image, image_id, procedure(position, image_id))
            for position, (image, image_id) in enumerate(zip(images, ids, strict=True))
        )
        return list(engine.run(jobs))

    def _decide_alike(
        self, images: Tensor, image_ids: Sequence[int] | Tensor | None, procedure: Callable[[], Procedure]
    ) -> list[Decision]:
        most = procedure().most  # its arguments are checked even where there is no image
        ids = checked_ids(image_ids, len(images))
        return self._decide(self.engine(images, most), images, ids, lambda *_: procedure()) if len(images) else []

    def _count(self, samples: int, first: int = 0, stream: Stream = Stream.PREDICT) -> Callable[[], Procedure]:
        """Makes procedures that count what some samples give each class, in units of the voting rule."""
        votes = self.voting.name == "prediction"  # whose sum is checked
        return partial(Count if votes else Total, samples, first, stream)

    def _require_votes(self, method: str) -> None:
        if self.voting.name != "prediction":
            raise ValueError(
                f"voting is {self.voting.name!r}, and {method} counts votes, as tests and certificates do: make the "
                "classifier with voting='prediction', or take `scores`"
            )

    def _stack(self, decisions: list[Decision], name: str) -> Tensor:
        values = np.array([getattr(decision, name) for decision in decisions])
        shape = (len(decisions), self.num_classes) if name == "counts" else (len(decisions),)
        integer = name in ("label", "counts", "samples", "invalid")
        return torch.from_numpy(values.astype(np.int64 if integer else np.float64).reshape(shape))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engines": Kept[Engine](), "_network": None}  # made anew where they are needed

    def _law(self, images: Tensor) -> Law:
        sigma, on_levels = tuple(self.sigma.tolist()), images.dtype == torch.uint8
        if len(sigma) not in (1, images.shape[1]):
            raise ValueError(f"sigma has {len(sigma)} entries; the images have {images.shape[1]} channels")
        if not any(sigma):
            return no_noise()
        noise = self.noise or ("lattice" if on_levels else "gaussian")
        if noise == "gaussian":
            return gaussian_law(sigma, levels=255 if on_levels else 1)
        if not on_levels:
            raise ValueError("noise is 'lattice', which needs uint8 images; pass uint8, or noise='gaussian'")
        return lattice_law(sigma)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SmoothedClassifier:
        sigma = self.sigma
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.sigma = sigma.to(self.sigma.device)  # half() must not round sigma
        return self


class _WithoutGradient(torch.autograd.Function):
    """Scores, which depend on images in a way that has no gradient.

    Were they cut off from the images, an attack would stop at an error of torch that says nothing of votes, or climb
    along whatever else is in its loss. Predictions for images that require a gradient are the same as for others.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, scores: Tensor, voting: str) -> Tensor:
        ctx.voting = voting
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Any:
        raise ValueError(
            f"voting is {ctx.voting!r}, and votes have no gradient: give a gradient attack of another package "
            "model.differentiable() in place of the model, or take one of smoothfast.attacks, which need no such thing"
        )


def elected(votes: Tensor) -> Tensor:
    """The class with most of the votes [N, K], int64 [N]: the first of several, ABSTAIN where none has any."""
    return votes.argmax(1).masked_fill(votes.sum(1) == 0, ABSTAIN)


def is_sound(engine: Engine) -> bool:
    """Whether radii from this engine hold in the arithmetic actually used (docs/soundness.md)."""
    return engine.law.name == "lattice" and bool(engine.meta["row_function"])


def checked_images(images: Tensor) -> Tensor:
    """Images uint8 or float32 [N, C, H, W] in their range.

    Raises:
        ValueError: wrong shape, dtype or range, or a value that is not finite.
    """
    images = finite_images(images).detach()
    if images.is_floating_point() and len(images) and (images.min() < 0 or images.max() > 1):
        low, high = float(images.min()), float(images.max())
        raise ValueError(
            f"images are float and range over {low:.4g} .. {high:.4g}; float images must lie in 0 .. 1 "
            "(pass uint8 for 0 .. 255, and normalisation as normalize=(mean, std))"
        )
    return images


def pixels(images: Tensor) -> Tensor:
    """The same images float32 [N, C, H, W] in [0, 1], be they uint8 or float; errors as of `checked_images`."""
    images = checked_images(images)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def finite_images(images: Tensor) -> Tensor:
    """Images uint8 or float32 [N, C, H, W] in whatever range.

    Raises:
        ValueError: wrong shape or dtype, or a value that is not finite.
    """
    if images.dim() != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images have shape {tuple(images.shape)}; they must be [N, C, H, W]")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; they must be uint8 (0..255) or float (0..1)")
    if not images.isfinite().all():
        raise ValueError("images hold values that are not finite (NaN or inf)")
    return images.float()


def checked_ids(image_ids: Sequence[int] | Tensor | None, count: int) -> list[int]:
    given = range(count) if image_ids is None else image_ids.tolist() if isinstance(image_ids, Tensor) else image_ids
    ids = [index(image_id) for image_id in given]
    if len(ids) != count:
        raise ValueError(f"image_ids has {len(ids)} entries; there are {count} images")
    for image_id in ids:
        if not 0 <= image_id <= MAX_IMAGE_ID:
            raise ValueError(f"image_ids holds {image_id}; ids must lie in 0 .. 2**44 - 1")
    return ids


def checked_labels(labels: Sequence[int] | Tensor, count: int, num_classes: int) -> list[int]:
    classes = [index(label) for label in (labels.tolist() if isinstance(labels, Tensor) else labels)]
    if len(classes) != count:
        raise ValueError(f"labels has {len(classes)} entries; there are {count} images")
    for label in classes:
        if not 0 <= label < num_classes:
            raise ValueError(f"labels holds {label}; labels must lie in 0 .. {num_classes - 1}")
    return classes
