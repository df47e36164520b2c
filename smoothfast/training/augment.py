"""Random crops, mirror images and mixtures, each a function of seed, image and epoch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.philox import uniforms
from ..streams import Stream

PADDING = 4  # pixels, of all published recipes for CIFAR-10


def crop_and_flip(images: Tensor, ids: Tensor, epoch: int, seed: int, padding: int = PADDING) -> Tensor:
    """Random crops of the zero-padded images, half of them mirrored: uint8 [B, C, H, W] to the same shape.

    Args:
        ids: int64 [B], the numbers of the images; what is drawn is a function of them, of epoch and seed.
    """
    _, _, height, width = images.shape
    place, side = 2 * padding + 1, uniforms(3, seed, ids, torch.full_like(ids, epoch), Stream.AUGMENT)
    top, left = ((side[:, :2].double() + 1) / 2 * place).long().unbind(1)
    columns = torch.arange(width, device=images.device).repeat(len(images), 1)
    columns = torch.where(side[:, 2:] < 0, columns.flip(1), columns) + left[:, None]
    rows = top[:, None] + torch.arange(height, device=images.device)
    at = torch.arange(len(images), device=images.device)[:, None, None]
    padded = F.pad(images, [padding] * 4)
    return padded[at, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def mixtures(ids: Tensor, epoch: int, seed: int) -> Tensor:
    """Shares float32 [B, 1, 1, 1], uniform in 0 .. 1/2, of what an image is mixed with: the fourth of the numbers of
    which three say how it is cropped and flipped."""
    drawn = uniforms(4, seed, ids, torch.full_like(ids, epoch), Stream.AUGMENT)[:, 3]
    return ((drawn + 1) / 4).view(-1, 1, 1, 1)
