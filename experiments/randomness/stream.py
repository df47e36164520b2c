"""stream.py KIND ORDER: bytes for tests of randomness to stdout, made by the ops that all noise comes from.

KIND: "words" (32 bits each: Philox as the kernels draw it), "lattice" (8: the integers modulo 256) or "gaussian" (16:
the first ones of Phi of the floats). ORDER: what counts up from each number to the next; see `ORDERS`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from smoothfast import ops
from smoothfast.noise import Law, Stream, gaussian_law, lattice_law, stream_key, within
from smoothfast.ops.philox import key_words, row_words

SEED, IMAGE, SAMPLE = 20240229, 1, 1  # of what does not count up
LARGE = 3 * 1024 * 1024  # elements of the one large image
SMALL = 1024  # elements of each of many images: 16 tiles
ROWS = 1024  # of small images at once
IMAGES = 64  # in the order of images and samples
SIGMA = 4.0  # of lattice noise, in pixel units: 1020 grey levels

Rows = tuple[Tensor, Tensor, Tensor]
"""Image ids [R], sample ids [R] and the key of a call."""


# ---- kinds: the noise of rows ----------------------------------------------------------------------------------------


def words(elements: int, images: Tensor, samples: Tensor, key: Tensor) -> np.ndarray:
    """Draws the words of elements 0 .. elements-1, a multiple of 64: uint32 [R, elements]."""
    assert ops.extension is not None, "raw words come from smoothfast._C, which is not built"
    counters = torch.stack(row_words(images, samples, key[1]), 1).tolist()
    halves = [int(half) for half in key_words(key)]
    drawn = [ops.extension.philox_words([0, *counter], halves, elements // 4) for counter in counters]
    return np.stack(drawn)


def lattice(elements: int, images: Tensor, samples: Tensor, key: Tensor) -> np.ndarray:
    """Draws lattice noise modulo 256: uint8 [R, elements]. At sigma 4 it is uniform but for 8.1e-11 (README.md)."""
    noise = _noise(torch.zeros(1, 1, 1, elements, dtype=torch.uint8), LATTICE, images, samples, key)
    return noise.to(torch.int16).view(torch.uint8)[:, ::2].numpy()


def gaussian(elements: int, images: Tensor, samples: Tensor, key: Tensor) -> np.ndarray:
    """Draws normals z and returns the first 16 bits of Phi(z): uint16 [R, elements]."""
    normals = _noise(torch.zeros(1, 1, 1, elements), GAUSSIAN, images, samples, key)
    return (torch.special.ndtr(normals.double()) * 2**16).clamp_(max=2**16 - 1).numpy().astype(np.uint16)


def _noise(zeros: Tensor, law: Law, images: Tensor, samples: Tensor, key: Tensor) -> Tensor:
    slots = torch.zeros_like(images)
    return ops.noisy_replicas(zeros, slots, images, samples, key, law, ONE, ZERO).flatten(1)


ONE, ZERO = torch.ones(1), torch.zeros(1)  # scale and shift
LATTICE, GAUSSIAN = lattice_law(SIGMA), gaussian_law(1.0)
KINDS: dict[str, Callable[[int, Tensor, Tensor, Tensor], np.ndarray]] = {
    "words": words,
    "lattice": lattice,
    "gaussian": gaussian,
}


# ---- orders: which rows, one call after the other --------------------------------------------------------------------


def by_sample(batch: int, seed: int) -> Iterator[Rows]:
    """Consecutive samples of one image."""
    samples = batch * ROWS + torch.arange(ROWS)
    yield torch.full_like(samples, IMAGE), samples, stream_key(seed, Stream.ESTIMATE)


def by_image(batch: int, seed: int) -> Iterator[Rows]:
    """One sample of consecutive images."""
    images = batch * ROWS + torch.arange(ROWS)
    yield images, torch.full_like(images, SAMPLE), stream_key(seed, Stream.ESTIMATE)


def by_image_and_sample(batch: int, seed: int) -> Iterator[Rows]:
    """Consecutive samples, each of 64 images."""
    rows = batch * ROWS + torch.arange(ROWS)
    yield rows % IMAGES, rows // IMAGES, stream_key(seed, Stream.ESTIMATE)


def by_seed(batch: int, seed: int) -> Iterator[Rows]:
    """One sample of one image, of consecutive seeds."""
    image, sample = torch.tensor([IMAGE]), torch.tensor([SAMPLE])
    ahead = batch * ROWS + torch.arange(ROWS)
    for key in stream_key(seed, Stream.ESTIMATE) + torch.stack([ahead, torch.zeros_like(ahead)], 1):
        yield image, sample, key


def by_stream(batch: int, seed: int) -> Iterator[Rows]:
    """Consecutive samples, each of all streams that there are: nine, and what refines them and the noise in a network
    within each."""
    keys = [stream_key(seed, stream) for stream in Stream if stream not in INNER]
    keys += [within(key, stream) for key in keys for stream in INNER]
    count = ROWS // len(keys)
    samples = batch * count + torch.arange(count)
    for key in keys:
        yield torch.full_like(samples, IMAGE), samples, key


INNER = (Stream.REFINE, Stream.WEIGHT, Stream.ACTIVATION)
MANY = {
    "sample": by_sample,
    "image": by_image,
    "image-sample": by_image_and_sample,
    "seed": by_seed,
    "stream": by_stream,
}
ORDERS = ("element", *MANY)


def large_image(kind: str, batch: int, seed: int) -> np.ndarray:
    """The elements of one large image in their order; a batch is a sample."""
    return KINDS[kind](LARGE, torch.tensor([IMAGE]), torch.tensor([batch]), stream_key(seed, Stream.ESTIMATE))


def small_images(kind: str, order: str, batch: int, seed: int) -> np.ndarray:
    """Rows of a batch side by side: the four numbers of a block of Philox in each row, then those of the next block."""
    parts = np.stack([KINDS[kind](SMALL, *rows) for rows in MANY[order](batch, seed)], 1)  # [rows, calls, elements]
    blocks = parts.reshape(-1, SMALL // 64, 4, 16)  # element 64 t + 16 w + b is word w of block 16 t + b
    return blocks.transpose(1, 3, 0, 2)


def chunk(kind: str, order: str, batch: int, seed: int = SEED) -> bytes:
    """The bytes of a batch, little-endian."""
    numbers = large_image(kind, batch, seed) if order == "element" else small_images(kind, order, batch, seed)
    return numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("order", choices=ORDERS)
    parser.add_argument("--seed", type=int, default=SEED, help="the first one, in the order of seeds")
    parser.add_argument("--bytes", type=int, help="how many; by default without end")
    args = parser.parse_args()
    left, batch = args.bytes, 0
    while left is None or left > 0:
        written = chunk(args.kind, args.order, batch, args.seed)[:left]
        sys.stdout.buffer.write(written)
        left, batch = None if left is None else left - len(written), batch + 1


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the test has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
