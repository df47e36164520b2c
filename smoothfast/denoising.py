"""Denoise, then classify: networks that never saw noise, made base classifiers by what takes the noise away.

Salman et al. 2020 (arXiv 2003.01908) train a denoiser; Carlini et al. 2023 (arXiv 2206.10550) take one step of a
diffusion model. Either way the noise is that of smoothing: modules here draw none, so they are one fixed function, and
certificates are as sound as those of any base classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .checks import choice, noise_level
from .models import Normalize
from .normalization import Normalization

PREDICTIONS = ("noise", "image", "velocity")
NEAR = 0.1  # by which the noise of a step may differ from that of the images, as a share of it


class Denoised(nn.Module):
    """A base classifier of two networks. Give it to `SmoothedClassifier` without `normalize`.

    Args:
        denoiser: noisy images [B, C, H, W] in [0, 1], but for the noise, to images of the same shape.
        classifier: images to logits [B, K].
        normalize: (mean, std) by channel that images get before the classifier.
    """

    def __init__(self, denoiser: nn.Module, classifier: nn.Module, normalize: Normalization | None = None) -> None:
        super().__init__()
        self.denoiser, self.classifier = denoiser, classifier
        self.normalize = nn.Identity() if normalize is None else Normalize(*normalize)
        self.training = denoiser.training or classifier.training

    def forward(self, images: Tensor) -> Any:
        """Logits [B, K] of noisy images.

        Raises:
            ValueError: the denoiser returns something else than images of this shape.
        """
        clean = self.denoiser(images)
        if not isinstance(clean, Tensor) or clean.shape != images.shape:
            found = list(clean.shape) if isinstance(clean, Tensor) else type(clean).__name__
            raise ValueError(
                f"the denoiser returns {found} for images {list(images.shape)}; it must return such images"
            )
        return self.classifier(self.normalize(clean))


class OneShotDiffusion(nn.Module):
    """A denoiser: one step of a diffusion model, at the time whose noise is that of the images.

    Images in [0, 1] become some in [-1, 1], so their noise has the standard deviation 2 sigma. A diffusion model knows
    noisy images as sqrt(a) x + sqrt(1 - a) e, a falling with time: that at which (1 - a) / a is nearest to (2 sigma)².

    Args:
        unet: noisy images [B, C, H, W] and times int64 [B] to what it predicts: U-Nets of diffusers, and of
            improved-diffusion and guided-diffusion. The half of the channels that are learned variances is left out.
        alphas_cumprod: [T], the share a of the image at each time.
        sigma: of the noise on images, in [0, 1] pixel units.
        predicts: "noise", e; "image", x; or "velocity", sqrt(a) e - sqrt(1 - a) x.

    Attributes:
        sigma: as given.
        time: of the step.

    Raises:
        ValueError: the U-Net takes a class or a text beside the image, or no time of it has noise like this.
    """

    times: Tensor

    def __init__(
        self, unet: nn.Module, alphas_cumprod: Tensor | Sequence[float], sigma: float, predicts: str = "noise"
    ) -> None:
        super().__init__()
        choice("predicts", predicts, PREDICTIONS)
        noise_level(sigma=sigma)
        asks = conditions(unet)
        if asks:
            raise ValueError(f"the U-Net takes {asks} beside the image; a base classifier has nothing to tell it")
        shares = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        falls = shares.dim() == 1 and len(shares) and bool((shares.diff() < 0).all())
        if not falls or not ((shares > 0) & (shares < 1)).all():
            raise ValueError(f"alphas_cumprod is {list(shares.shape)}; it must be [T], falling from below 1 to above 0")
        noises = ((1 - shares) / shares).sqrt() / 2
        self.time = int((noises - sigma).abs().argmin())
        if abs(noises[self.time] - sigma) > NEAR * sigma:
            raise ValueError(
                f"sigma is {sigma}; the diffusion model knows noise from {noises.min():.4g} to {noises.max():.4g}, and "
                f"{noises[self.time]:.4g} is the nearest"
            )
        self.unet, self.predicts, self.sigma, self.training = unet, predicts, sigma, unet.training
        self.image, self.noise = float(shares[self.time].sqrt()), float((1 - shares[self.time]).sqrt())
        self.register_buffer("times", torch.tensor([self.time]), persistent=False)

    def extra_repr(self) -> str:
        """Returns the noise that it takes away, and how."""
        return f"sigma={self.sigma}, predicts={self.predicts!r}, time={self.time}"

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] of noisy ones."""
        noisy = self.image * (2 * images - 1)
        found = _images(self.unet(noisy, self.times.expand(len(images))))[:, : images.shape[1]]
        if self.predicts == "noise":
            found = (noisy - self.noise * found) / self.image
        elif self.predicts == "velocity":
            found = self.image * noisy - self.noise * found
        return (found.clamp(-1, 1) + 1) / 2


def conditions(unet: nn.Module) -> str:
    """Says what a U-Net takes beside image and time; nothing where that is all."""
    config = getattr(unet, "config", unet)  # of diffusers; the others have attributes
    if getattr(config, "cross_attention_dim", None) is not None or getattr(config, "encoder_hid_dim", None) is not None:
        return "a text"
    names = ("num_classes", "num_class_embeds", "class_embed_type")
    return "a class" if any(getattr(config, name, None) is not None for name in names) else ""


def _images(output: Any) -> Tensor:
    """The images in what a U-Net returns: themselves, `.sample` or the first of several."""
    found = getattr(output, "sample", output)
    return found[0] if isinstance(found, tuple) else found
