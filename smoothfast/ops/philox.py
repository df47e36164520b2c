"""Philox4x32-10 in plain PyTorch: keys, counters and the random words of images and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import seed_in_range
from ..streams import Stream


def stream_key(seed: int, stream: Stream, device: torch.device | str = "cpu") -> Tensor:
    """The key of an op: int64 [2], the 64 bits of the seed and the stream."""
    seed_in_range(seed)
    bits = seed - 2**64 if seed >= 2**63 else seed
    return torch.tensor([bits, int(Stream(stream))], dtype=torch.int64, device=device)


def uniforms(count: int, seed: int, image_ids: Tensor, sample_ids: Tensor, stream: Stream) -> Tensor:
    """Uniform numbers in (-1, 1), float32 [R, count], of image and sample ids [R]: the words of a stream, whose upper
    24 bits count, on a grid symmetric around 0."""
    words = random_words(count, image_ids, sample_ids, stream_key(seed, stream, image_ids.device))
    return ((words >> 8).double() * 2.0**-23 + (2.0**-24 - 1)).float()


def within(key: Tensor, stream: Stream) -> Tensor:
    """The key of the noise in a network that samples of a key pass: of its weights, WEIGHT, or of its activations. The
    samples that select a class and those that estimate its probability must not share that either."""
    return torch.stack([key[0], key[1] << 4 | int(stream)])


WORD = 0xFFFFFFFF
VERSION = 1


def philox(counter: Sequence[Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011): four counter words and two key words to four words, all int64 tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # wrapping is harmless: only the 64 bits matter
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, p1 & WORD, _high(p0) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return [c0, c1, c2, c3]


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & WORD


def key_words(key: Tensor) -> tuple[Tensor, Tensor]:
    """The two key words of Philox of a key of an op."""
    return key[0] & WORD, _high(key[0])


def row_words(image_ids: Tensor, sample_ids: Tensor, tag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The counter words 1, 2 and 3 of images and samples in a stream."""
    c3 = (image_ids >> 32) << 20 | (sample_ids >> 32) << 12 | tag << 4 | VERSION
    return sample_ids & WORD, image_ids & WORD, c3


def random_words(elements: int, image_ids: Tensor, sample_ids: Tensor, key: Tensor) -> Tensor:
    """The random 32-bit words of elements 0 .. elements-1, int64 [R, elements]: word w of block b belongs to element
    64 (b // 16) + 16 w + b % 16."""
    tiles = math.ceil(elements / 64)
    blocks = torch.arange(16 * tiles, device=key.device)
    rows = [word[:, None] for word in row_words(image_ids, sample_ids, key[1])]
    words = philox([blocks.expand(len(image_ids), -1), *rows], key_words(key))
    return torch.stack([word.view(-1, tiles, 16) for word in words], dim=2).flatten(1)[:, :elements]
