"""The smoothed classifier: g(x) = the class to which the noisy copies of x give most; by default most votes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import names
from ..checks import LARGEST_SIGMA, at_least, choice, in_pixel_units, seed_in_range
from ..engine import Adapter, Average, BaseFunction, Engine, Job, default_micro_batch
from ..images import UNIT, checked_bounds, checked_ids, checked_images, checked_labels, far_outside, finite_images
from ..layers import draws_noise
from ..modules import as_module, device_of, warn
from ..noise import uniform
from ..normalization import Normalization, checked_normalization
from ..ops.laws import Law, float_law, gaussian_law, law_of
from ..procedures import Count, Decision, Procedure, Total, certify_procedure, expected, predict_procedure
from ..runners.choice import RunnerCache
from ..streams import Stream, drawn_seed
from ..turns import Turns
from ..untraced import untraced
from ..voting import log_scores, voting_rule
from . import hints
from .results import Certificate, Prediction, certificate, counts, prediction, warned_of_silence
from .soft import SoftClassifier, without_gradient
from .stateful import StatefulModule

LEAST_U = 0.05  # of randomized bounds


@untraced("forward", "scores", "top", "votes", "predict", "certify")
class SmoothedClassifier(StatefulModule):
    """A base classifier, smoothed: a drop-in module, and the procedures PREDICT and CERTIFY of Cohen et al. 2019.

    `forward` draws new samples at every call; `scores`, `top`, `votes`, `predict` and `certify` are pure functions of
    the seed, the images and their ids. The base classifier runs in eval mode and is left in the mode it was in. Threads
    may share a classifier: calls wait for each other.

    Args:
        base: any module or function from images [B, C, ...] to logits [B, K], alone, first in a tuple, or as `.logits`
            or ["logits"]. Images may be of any rank from 2 on: features [N, D] have D channels.
        sigma: standard deviation of the noise, in units of the images ([0, 1] pixel units for uint8); one number, or
            one per channel (a certificate then uses the smallest). 0 where `base` has noise of its own (`layers`),
            which then is all there is.
        num_classes: K; None: that of the base classifier, found at the first call.
        samples: noisy copies per image in `forward`.
        voting: what a copy gives each class (Nemcovsky et al. 2019, arXiv 1911.07198, eq. 8-13). "prediction": 1 to its
            most probable class, a vote; "soft": the probability; "logit": the logit, clamped to -4096 .. 4096;
            "weighted": 2^-(k-1) to the class of rank k. Or weights by rank, as (1, 0.5); later ranks get nothing. A
            copy whose logits are not finite gives nothing. Tests and certificates are of votes: `votes`, `predict` and
            `certify` take "prediction" alone.
        normalize: (mean, std) per channel, fused into the noise kernel; None where `base` normalises itself.
        noise: "lattice" (exact, needs uint8 images) or "gaussian"; None takes lattice for uint8 and gaussian for
            float images.
        seed: of all noise, 0 .. 2**64 - 1. None draws one from the operating system here and now; the `meta` of
            certificates has it. Images chosen by somebody who knows it get no valid certificate (docs/soundness.md).
        precision: "fp32", "bf16", "fp16", "int8" (docs/integers.md), or "auto": bf16 where hardware multiplies in it.
        max_batch: rows per forward pass of the base classifier; bounds memory whatever `samples` and n are.
        runner: "eager"; "compiled": up to twice as fast after some seconds of compilation (about 18 for ResNet-20);
            "openvino", where it is installed: as fast on CPUs after fewer (2 for ResNet-20, 6 for ResNet-110);
            "fused": CIFAR ResNets by kernels of their own, on CPUs and CUDA (docs/engine.md); or "auto": the one that
            takes least for the samples of one image (`runners.choice`), and the next where that one declines.
        clip: clamp noisy images to their range; the clamp is then part of the base classifier.
        bounds: (low, high) of float images that lie in another range than 0 .. 1; None: in none.
        deterministic: let every call of `forward` repeat the same samples. Say so beside any robustness figure.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        base: nn.Module | Callable[[Tensor], Any],
        sigma: float | Sequence[float],
        num_classes: int | None = None,
        samples: int = 64,
        voting: str | Sequence[float] = "prediction",
        normalize: Normalization | None = None,
        noise: str | None = None,
        seed: int | None = 0,
        precision: str = "auto",
        max_batch: int | None = None,
        *,
        runner: str = "auto",
        clip: bool = False,
        bounds: Sequence[float] | None = UNIT,
        deterministic: bool = False,
    ) -> None:
        super().__init__()
        choice("runner", runner, names.RUNNERS)
        if noise is not None:
            choice("noise", noise, names.NOISES)
        at_least(2, num_classes=num_classes)
        self._rule, self.known_classes = voting, num_classes
        self.voting = voting_rule(voting, num_classes)
        at_least(1, samples=samples, max_batch=max_batch)
        self.seed = drawn_seed() if seed is None else seed
        seed_in_range(self.seed)
        self.base = base = as_module(base, "base")
        self.bounds = checked_bounds(bounds)
        if clip and self.bounds != UNIT:
            raise ValueError(f"clip is True and bounds is {bounds}; noisy images are clamped to 0 .. 1 alone")
        sigmas = float_law(sigma).sigma if draws_noise(base) else gaussian_law(sigma).sigma
        if self.bounds == UNIT:
            in_pixel_units("sigma", max(sigmas), LARGEST_SIGMA)
        self.register_buffer("sigma", torch.tensor(sigmas, dtype=torch.float64))
        self.samples, self.noise = samples, noise
        self.normalize = checked_normalization(normalize, self.bounds == UNIT)
        self.precision, self.max_batch, self.runner, self.clip = precision, max_batch, runner, clip
        self.deterministic = deterministic
        self.training = base.training  # packages that put back the mode they found would train the base classifier
        self._engines: RunnerCache[BaseFunction, Engine] = RunnerCache()
        self._adapter, self._said_far_outside = Adapter(), False
        self.turns = Turns()
        self.reset()

    def reset(self) -> None:
        """The next call of `forward` starts again from the first sample."""
        self._next_sample = 0

    @property
    def num_classes(self) -> int:
        """K; where it was not given, it is known from the first call on, and a ValueError before."""
        if self.known_classes is None:
            raise ValueError("num_classes is None; it is known once the classifier was called")
        return self.known_classes

    def forward(self, images: Tensor) -> Tensor:
        """Log-scores float32 [N, K] of images [N, C, ...]; their argmax is the prediction.

        They are finite, and in the order of what the copies gave: `voting.log_scores` has the formulas; the score of a
        class with c of n votes is log((c + 1/2) / (n + K/2)). Every call draws samples that were not drawn before,
        unless `deterministic`, and none that `scores`, `votes`, `predict` or `certify` draw.

        Votes, weighted or not, have no gradient: whoever asks for one gets a ValueError that names `differentiable`.
        Soft and logit voting have, with respect to float images and to the parameters of the base classifier. Where
        autograd is on and one of these requires a gradient, the same samples go through the base classifier by plain
        PyTorch: slower, the same values up to rounding, and NaN where a logit is not finite. Predictions alone are
        faster under `torch.no_grad()`.
        """
        with self.turns.taken():
            first = 0 if self.deterministic else self._next_sample
            self._next_sample = first + self.samples
            images = finite_images(images, self.bounds)
            if not self._said_far_outside and (found := far_outside(images, self.bounds)):
                self._said_far_outside = True
                warn(found)
            self._learn_classes(images)
            if self.voting.differentiable and self._gradient_is_asked(images):
                average = Average(
                    self.function(images, gradient=images.requires_grad), Stream.FORWARD, self.voting.name
                )
                return average.scores(images, first, self.samples)
            decisions = self._decide_alike(images.detach(), None, self._count(self.samples, first, Stream.FORWARD))
        given = counts(decisions, self.num_classes).to(images.device)
        scores = log_scores(self.voting, given, self.samples).float()
        return scores if self.voting.differentiable else without_gradient(images, scores, self.voting.name)

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
        return SoftClassifier(self, samples, max_batch)

    def scores(self, images: Tensor, samples: int = 1000, image_ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """The mean of what the first `samples` noisy copies of each image give each class by the voting rule: float64
        [N, K]. By "prediction" it is the share of votes."""
        decisions = self._decide_alike(checked_images(images, self.bounds), image_ids, self._count(samples))
        return counts(decisions, self.num_classes).double() * (self.voting.unit / samples)

    def top(
        self, images: Tensor, k: int, samples: int = 1000, image_ids: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The k classes with the largest `scores`, largest first and the lower one on ties: int64 [N, k].

        With votes these are the classes that most copies put first. `mcpredict` in the code of Nemcovsky et al. is
        something else: its j-th class is the one that most copies put in place j, among those not yet returned, and is
        spurious (the lowest class left) where none of these has a vote there.
        """
        at_least(1, k=k)
        images = checked_images(images, self.bounds)
        self._learn_classes(images)
        if k > self.num_classes:
            raise ValueError(f"k is {k}; it must be at most {self.num_classes}, the classes")
        decisions = self._decide_alike(images, image_ids, self._count(samples))
        return counts(decisions, self.num_classes).argsort(dim=1, descending=True, stable=True)[:, :k]

    def votes(self, images: Tensor, samples: int = 1000, image_ids: Sequence[int] | Tensor | None = None) -> Tensor:
        """Votes by class, int64 [N, K], of the first `samples` noisy copies of each image."""
        self._require_votes("votes")
        decisions = self._decide_alike(checked_images(images, self.bounds), image_ids, self._count(samples))
        return counts(decisions, self.num_classes)

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
            images: uint8 (0..255) or float (0..1, or `bounds`) [N, C, ...].
            n: samples per image, the most of them for "sequential"; at least 11 at alpha 0.001.
            alpha: error level per image.
            method: "fixed", or "sequential": stops as soon as the votes decide, after 16 samples at the least.
            image_ids: [N], the numbers the noise is drawn under; 0..N-1 if not given.
        """
        self._require_votes("predict")
        images = checked_images(images, self.bounds)
        decisions = self._decide_alike(images, image_ids, lambda: predict_procedure(method, n, alpha), method)
        return prediction(decisions, self.num_classes)

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
        radii: Sequence[float] | None = None,
        beta: float | None = None,
        labels: Sequence[int] | Tensor | None = None,
        randomize: bool = False,
    ) -> Certificate:
        """CERTIFY: a class and an L2 radius within which it stays the prediction, wrong with probability at most alpha.

        Args:
            images: uint8 (0..255) or float (0..1, or `bounds`) [N, C, ...]. Only uint8 images give sound certificates.
            n0, n: samples that select the class, and others that bound its probability, at most where it stops early.
            alpha: error level per image.
            method: "fixed": the radius after n samples; "sequential": is it at least `radius`?; "tolerance": a radius
                that aims to be at most `tolerance` below that of "fixed"; "grid": the largest certified one of `radii`.
            bound: "multiclass" (sigma/2 (Phi^-1(p_A) - Phi^-1(p_B))) or "cohen" (p_B = 1 - p_A).
            image_ids: [N], the numbers the noise is drawn under; 0..N-1 if not given.
            radius: for "sequential", in [0, 1] pixel units.
            tolerance: for "tolerance", in units of sigma.
            radii: for "grid", increasing, in [0, 1] pixel units.
            beta: for "grid", the level at which it gives radii up, 0.05 if not given. It costs radii, never validity.
            labels: [N] classes to certify in place of selected ones, known beforehand, not from the same samples.
            randomize: bounds after Stevens 1950, which depend on one uniform number an image (stream RANDOMIZE). Valid,
                but radii then depend on luck: at n = 10,000 by 0.16 sigma at most, where all votes agree.
        """
        self._require_votes("certify")
        if not (sigma := min(self.sigma.tolist())):
            raise ValueError("sigma is 0; a radius takes noise on images")
        images = checked_images(images, self.bounds)
        self._learn_classes(images)
        ids = checked_ids(image_ids, len(images))
        classes = None if labels is None else checked_labels(labels, len(images), self.num_classes)
        grid = None if radii is None else tuple(map(float, radii))
        given: dict[str, Any] = {"radius": radius, "tolerance": tolerance, "radii": grid, "beta": beta}
        new = partial(certify_procedure, method, n0, n, alpha, sigma, bound=bound, **given)
        # Checks the arguments before any work. A smaller u gives radii that mean nothing: infinite ones below alpha.
        most = new(label=None if classes is None else 0, u=LEAST_U if randomize else 1.0).most
        asked = given | {"n0": n0, "n": n, "alpha": alpha, "method": method, "bound": bound, "labels": classes}
        asked |= {"randomize": randomize, "image_ids": ids} | ({} if self.bounds == UNIT else {"bounds": self.bounds})
        with self.turns.taken():
            engine = self.engine(images, most)

            def procedure(position: int, image_id: int) -> Procedure:
                label = None if classes is None else classes[position]
                u = max(uniform(self.seed, image_id), LEAST_U) if randomize else 1.0
                return new(label=label, u=u, deviation=engine.function.deviation)

            decisions = self._decide(engine, images, ids, procedure, expected(method, most))
            hints.of_floats(engine, images, self.noise, self.bounds)
            return certificate(decisions, engine, alpha, {**asked, "declined": self._engines.declined})

    # ---- the base classifier as a function, and the engine that runs it ----------------------------------------------

    def engine(self, images: Tensor, passes: int = 0) -> Engine:
        """The engine for images [N, C, ...] of this shape and dtype; made anew when these or the weights change.

        Args:
            passes: forward passes that are to come; runner "auto" chooses by them.
        """
        return self._engines.first_accepted(self.functions(images, passes), self._new_engine, self.voting)

    def functions(self, images: Tensor, passes: int, law: Law | None = None) -> list[BaseFunction]:
        """The base classifier for images of this shape and dtype by each runner to be tried, the preferred one first.

        Args:
            passes: forward passes that are to come; runner "auto" chooses by them.
            law: of noise, other than its own.
        """
        function = self.function(images, law)
        if self.runner != "auto":
            return [replace(function, runner=self.runner)]
        return [replace(function, runner=runner) for runner in function.candidates(passes)]

    def function(self, images: Tensor, law: Law | None = None, gradient: bool = False) -> BaseFunction:
        """The base classifier for images of this shape and dtype, under its own noise or another law; with its gradient
        by images."""
        dtype = torch.uint8 if images.dtype == torch.uint8 else torch.float32
        return BaseFunction.resolved(
            self.base, law or law_of(self.noise, self.sigma.tolist(), dtype), images.shape[1:], dtype,
            normalize=self.normalize, clip=self.clip, precision=self.precision, micro_batch=self._micro_batch(images),
            seed=self.seed, num_classes=self.known_classes, adapter=self._adapter, gradient=gradient,
        )  # fmt: skip

    def _learn_classes(self, images: Tensor) -> None:
        """Takes the number of classes from the base classifier where it was not given."""
        if self.known_classes is None:
            self.known_classes = self.function(images).num_classes
            self.voting = voting_rule(self._rule, self.known_classes)

    def _new_engine(self, function: BaseFunction) -> Engine:
        if self.base.training:
            warn("the base classifier is in train mode; it runs in eval mode here")
        return Engine(function, (self.voting,))

    def _micro_batch(self, images: Tensor) -> int | None:
        """Rows per forward pass; None: by image size and device. Where only one sample of an image can be in a
        micro-batch, no more than there are images."""
        if self.max_batch is not None or not draws_noise(self.base):
            return self.max_batch
        usual = default_micro_batch(images.shape[1:], device_of(self.base))
        return min(usual, 2 ** (max(1, len(images)) - 1).bit_length())

    # ---- decisions ---------------------------------------------------------------------------------------------------

    def _decide(
        self, engine: Engine, images: Tensor, ids: list[int], procedure: Callable[[int, int], Procedure], samples: int
    ) -> list[Decision]:
        """The decisions on images, by about so many samples each; `procedure` makes that of the image at a position,
        with an id."""
        if self.runner == "auto":
            hints.of_a_runner(engine, len(images), samples, self._engines.declined)
        jobs = (
            Job(image, image_id, procedure(position, image_id))
            for position, (image, image_id) in enumerate(zip(images, ids, strict=True))
        )
        return warned_of_silence(list(engine.run(jobs)))

    def _decide_alike(
        self,
        images: Tensor,
        image_ids: Sequence[int] | Tensor | None,
        procedure: Callable[[], Procedure],
        method: str = "fixed",
    ) -> list[Decision]:
        most = procedure().most  # its arguments are checked even where there is no image
        self._learn_classes(images)
        ids = checked_ids(image_ids, len(images))
        if not len(images):
            return []
        with self.turns.taken():
            each = expected(method, most)
            return self._decide(self.engine(images, most), images, ids, lambda *_: procedure(), each)

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
