"""The definition of CIFAR ResNets in integers.

Two steps alone are rounded, and IEEE 754 says how: between two layers one fused multiply-add in float32, and its result
to an integer. So any processor computes the same bits, in any order; `ops.fused_logits` does it fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops

LEVELS = 255  # the largest of a map, and of a pixel without noise
PIXELS = 64  # of the last map
IMAGE = torch.Size((3, 32, 32))


class IntegerConvolution(nn.Module):
    """A 3x3 convolution of integers. Its sums are scaled and rounded to the levels of the next map, 0 .. 255.

    Attributes:
        weight: int8 [O, I, 3, 3]; of the one of images int16 [O, 3, 3, 3].
        scale: float32 [O].
        bias: float32 [O]; of the one of images [3, 3, O], for the first, the inner and the last rows and columns.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def sums(self, x: Tensor) -> Tensor:
        """Sums of products [B, O, H, W], exact: integers in float64, as those of x [B, I, H', W']."""
        return F.conv2d(x, self.weight.double(), stride=self.stride, padding=1)

    def rounded(self, sums: Tensor) -> Tensor:
        """The next map [B, O, H, W], integers 0 .. 255 in float64."""
        bias = self.bias.view(-1, 1, 1) if self.bias.dim() == 1 else of_pixels(self.bias, sums.shape[-1])
        return fma(sums.float(), self.scale.view(-1, 1, 1), bias).double().round().clamp(0, LEVELS)


class IntegerBlock(nn.Module):
    """A basic block in integers. Its shortcut enters the sums of the second convolution, in their units.

    Attributes:
        shift: int32 [O], the bits that the shortcut is shifted by.
        multiplier: int8 [O], by which channels of the shortcut are multiplied before; None where the shape changes.
        shortcut: int8 [O, I, 1, 1], a 1x1 convolution with a stride of 2; None where the shape stays.
    """

    shift: Tensor
    multiplier: Tensor | None
    shortcut: Tensor | None

    def __init__(
        self,
        first: IntegerConvolution,
        second: IntegerConvolution,
        shift: Tensor,
        multiplier: Tensor | None,
        shortcut: Tensor | None,
    ) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.register_buffer("shift", shift)
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("shortcut", shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """The map after the block, of the one before it."""
        inner = self.first.rounded(self.first.sums(x))
        return self.second.rounded(self.second.sums(inner) + self.added(x))

    def added(self, x: Tensor) -> Tensor:
        """The shortcut, in the units of the sums."""
        if self.shortcut is not None:
            products = F.conv2d(x, self.shortcut.double(), stride=2)
        else:
            assert self.multiplier is not None
            products = x * self.multiplier.double().view(-1, 1, 1)
        return products * torch.pow(2.0, self.shift.double()).view(-1, 1, 1)


class IntegerResNet(nn.Module):
    """A CIFAR ResNet of depth 6n + 2 in integers, for images 3x32x32; their normalisation is part of it.

    It has buffers and no parameters, and no gradient. `quantization.quantize` makes one, weights files hold its
    `state_dict`, and `exact.network_of` sees to it that no sum can overflow.

    Attributes:
        linear: int16 [K, C].
        linear_bias: int32 [K].
        unit: float32 [], of the logits.
    """

    linear: Tensor
    linear_bias: Tensor
    unit: Tensor

    def __init__(
        self,
        image: IntegerConvolution,
        blocks: Sequence[IntegerBlock],
        linear: Tensor,
        linear_bias: Tensor,
        unit: Tensor,
    ) -> None:
        super().__init__()
        self.image = image
        self.blocks: Sequence[IntegerBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.register_buffer("linear", linear)
        self.register_buffer("linear_bias", linear_bias)
        self.register_buffer("unit", unit)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [B, K] of noisy images [B, 3, 32, 32]: float, in units of 255 levels, rounded to a level; or
        integers, levels. Beyond 16 bits they are cut off.

        Raises:
            ValueError: images are of another shape, or floats of 16 bits, which do not hold every level.
        """
        if images.shape[1:] != IMAGE or images.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(f"images are {images.dtype} {list(images.shape)}; integers take [B, 3, 32, 32] in float32")
        images = images.detach()  # its gradient would be zero, which an attack takes for that of a robust network
        levels = (images.float() * LEVELS).round() if images.is_floating_point() else images
        x = levels.double().nan_to_num(0).clamp(-(2**15), 2**15 - 1)
        x = self.image.rounded(self.image.sums(x))
        for block in self.blocks:
            x = block(x)
        return (x.sum((2, 3)) @ self.linear.double().T + self.linear_bias).float() * self.unit

    @property
    def shape(self) -> list[int]:
        """The shape that `ops.fused_logits` takes."""
        stage = len(self.blocks) // 3
        return [*(len(self.blocks[number * stage].shift) for number in range(3)), stage, len(self.linear)]

    def packed(self, arithmetic: str) -> Tensor:
        """The network as the kernels of an arithmetic take it, uint8 [bytes], on the CPU."""
        layers = list(self._layers())
        weights, scales, biases, multipliers, shifts = (
            [layer[name].cpu() for layer in layers] for name in ("weight", "scale", "bias", "multiplier", "shift")
        )
        last = self.linear.cpu(), self.linear_bias.cpu(), float(self.unit)
        return ops.fused_pack_integers(weights, scales, biases, multipliers, shifts, *last, arithmetic)

    def _layers(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of each layer, in the order of `ops.fused_pack_integers`; empty ones for what it has not."""
        absent = {"scale": torch.empty(0), "bias": torch.empty(0)}
        absent |= {"multiplier": torch.empty(0, dtype=torch.int8), "shift": torch.empty(0, dtype=torch.int32)}
        yield absent | dict(self.image.named_buffers())
        for block in self.blocks:
            own = dict(block.named_buffers(recurse=False))
            if "shortcut" in own:
                yield absent | {"weight": own.pop("shortcut")}
            yield absent | dict(block.first.named_buffers())
            yield absent | dict(block.second.named_buffers()) | own


def of_pixels(bias: Tensor, size: int) -> Tensor:
    """Biases [O, size, size] of pixels, of those [3, 3, O] for the first, the inner and the last rows and columns."""
    at = [0, *[1] * (size - 2), 2]
    return bias[at][:, at].permute(2, 0, 1)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c in float32, rounded once.

    The product is exact in float64. The sum is rounded there to odd, which keeps what the second rounding needs to know
    (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    """
    product, c = a.double() * b.double(), c.double()
    total = product + c
    other = total - product
    error = (product - (total - other)) + (c - other)
    odd = total.contiguous().view(torch.int64) % 2 != 0
    towards = torch.where(error > 0, torch.inf, -torch.inf)
    return torch.where((error == 0) | odd, total, torch.nextafter(total, towards)).float()
