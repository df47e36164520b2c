"""Every op in a few lines of plain PyTorch: the definition that the compiled backends are tested against.

Runs on any device, needs no compiler, and serves where no compiled kernel is registered. The typed signatures are the
schemas of the ops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..streams import MAX_IMAGE_ID, MAX_SAMPLE_ID, Stream
from ..voting import LARGEST, LOGIT, SOFT
from . import arguments
from .philox import WORD, key_words, philox, random_words, row_words

LANES = 256
MAX_TILE = 2**28 - 1  # of a layer: its blocks have 32-bit numbers
LOW_RANK = 2**32  # what is added to the number of a layer for the normals that all its weights share
MARGIN = 2.0**-28  # of an l2 ball, kept free for the roundings of its norm


def noisy_replicas(
    images: Tensor,
    slots: Tensor,
    image_ids: Tensor,
    sample_ids: Tensor,
    key: Tensor,
    law: str,
    table: Sequence[Tensor],
    scale: Tensor,
    shift: Tensor,
    clip: bool,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Row r is (images[slots[r]] + noise of (image_ids[r], sample_ids[r])) * scale + shift; zeros if slots[r] < 0."""
    arguments.check_noisy_replicas(images, slots, image_ids, sample_ids, key, law, table, scale, shift, dtype)
    live = slots >= 0
    _check_range("noisy_replicas", "image_ids", image_ids[live], MAX_IMAGE_ID)
    _check_range("noisy_replicas", "sample_ids", sample_ids[live], MAX_SAMPLE_ID)
    shape = images.shape[1:]
    sample = LAWS[law](math.prod(shape), image_ids, sample_ids, key, table).view(len(slots), *shape)
    noisy = (images[slots.clamp(min=0)].double() + sample).float()
    if clip:
        noisy = noisy.clamp(0, 1 if images.is_floating_point() else 255)
    # One rounding, as the fused multiply-add of the kernels: the float64 sum is exact or nearly so.
    out = (noisy.double() * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)).float()
    out = _stored(out.masked_fill_(~live.view(-1, 1, 1, 1), 0), dtype)
    return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def tally(
    logits: Tensor,
    slots: Tensor,
    counts: Tensor,
    invalid: Tensor,
    voting: str = "prediction",
    weights: Tensor | None = None,
) -> None:
    """Adds what row r gives each class by the voting rule, a whole number of units, to counts[slots[r]]; rows with a
    non-finite logit count in invalid[slots[r]] instead; rows with slots[r] < 0 are padding."""
    arguments.check_tally(logits, slots, counts, invalid, voting, weights)
    finite = logits.isfinite().all(1)
    valid, broken = (slots >= 0) & finite, (slots >= 0) & ~finite
    counts.index_add_(0, slots[valid], SHARES[voting](logits[valid], weights))
    invalid.index_add_(0, slots[broken], torch.ones_like(slots[broken]))


def replica_sum(gradients: Tensor, slots: Tensor, scale: Tensor, images: int) -> Tensor:
    """Image s is scale * the sum of the rows r with slots[r] == s, added one by one in float32, in their order."""
    arguments.check_replica_sum(gradients, slots, scale, images)
    rows = slots.argsort(stable=True)[(slots < 0).sum() :]
    by_slot = slots[rows]
    # Its place among the rows of its slot: the first rows of all slots are added at once, then the second ones.
    place = torch.arange(len(rows), device=rows.device) - torch.searchsorted(by_slot, by_slot)
    sums = gradients.new_zeros((images, *gradients.shape[1:]), dtype=torch.float32)
    for i in range(int(place.max()) + 1 if len(rows) else 0):
        at = place == i
        sums[by_slot[at]] += gradients[rows[at]].float()
    return sums * scale.view(-1, 1, 1)


def attack_step(
    adversarial: Tensor, images: Tensor, gradients: Tensor, norm: str, alpha: float, eps: float, low: float, high: float
) -> None:
    """A step of length alpha up the gradients, then the projection on the eps-ball around the images and on
    [low, high], in place. Every rounding goes towards the image, so that no result leaves the ball."""
    arguments.check_attack_step(adversarial, images, gradients, norm, alpha, eps, low, high)
    step, radius, least, most = limits(alpha, eps, low, high)
    adversarial.copy_(_clip(NORMS[norm](adversarial, images, gradients, step, radius), least, most))


def perturb_weights(
    weights: Tensor, scales: Tensor, factors: Tensor, tiles: Tensor, passes: Tensor, key: Tensor, dtype: torch.dtype
) -> Tensor:
    """Pass p is weights + scales * xi + the sum of factors[k] * z[k], the normals xi (one for each weight) and z (one
    for each layer and k) drawn anew in each pass. Layer and pass stand where noise on images has image and sample; z
    are the first normals of image 2^32 + layer."""
    arguments.check_perturb_weights(weights, scales, factors, tiles, passes, key, dtype)
    layers, numbers = tiles
    _check_range("perturb_weights", "tiles[0]", layers, WORD)
    _check_range("perturb_weights", "tiles[1]", numbers, MAX_TILE)
    _check_range("perturb_weights", "passes", passes, MAX_SAMPLE_ID)
    own = _normals(_tile_words(numbers, layers, passes, key))
    shared = _normals(_tile_words(torch.zeros_like(numbers), layers + LOW_RANK, passes, key))
    # One rounding each, as the fused multiply-adds of the kernels: the float64 sums are exact or nearly so.
    noisy = (weights.double() + scales.double() * own.double()).float()
    for factor, normal in zip(factors, shared.unbind(-1), strict=False):
        noisy = (noisy.double() + factor.double() * normal.double().unsqueeze(-1)).float()
    return noisy.to(dtype)


def _stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in a dtype, rounded to nearest even; as int16 the nearest of its numbers, and 0 for NaN."""
    if dtype.is_floating_point:
        return values.to(dtype)
    limits = torch.iinfo(dtype)
    return values.nan_to_num(0).round().clamp(limits.min, limits.max).to(dtype)


def _check_range(op: str, name: str, values: Tensor, end: int) -> None:
    if ((values < 0) | (values > end)).any():
        raise ValueError(f"{op}: {name} must lie in 0 .. {end}")


def _tile_words(numbers: Tensor, layers: Tensor, passes: Tensor, key: Tensor) -> Tensor:
    """The words int64 [P, T, 64] of the tiles of these numbers in these layers, both [T], in passes [P]."""
    blocks = 16 * numbers[:, None] + torch.arange(16, device=key.device)
    rows = [word[..., None] for word in row_words(layers, passes[:, None], key[1])]
    counter = torch.broadcast_tensors(blocks, *rows)
    return torch.stack(philox(counter, key_words(key)), -2).flatten(-2)


def limits(alpha: float, eps: float, low: float, high: float) -> tuple[float, float, float, float]:
    """Limits of a step as float32: alpha rounded to nearest, the others inwards."""
    return float(_float32(alpha)), _round_down(eps), -_round_down(-low), _round_down(high)


def _lattice(elements: int, image_ids: Tensor, sample_ids: Tensor, key: Tensor, table: Sequence[Tensor]) -> Tensor:
    """N = #{i : T[i] <= u} - M, where the lower 64 bits of u are looked at only if the word ties with a threshold."""
    high, low, _ = table
    reach = high.shape[1] // 2
    words = random_words(elements, image_ids, sample_ids, key)
    parts = words.chunk(high.shape[0], 1) if high.shape[0] > 1 else (words,)
    below = torch.cat([torch.searchsorted(h, w.contiguous()) for h, w in zip(high, parts, strict=True)], 1)
    upto = torch.cat([torch.searchsorted(h, w.contiguous(), right=True) for h, w in zip(high, parts, strict=True)], 1)
    rows, ties = torch.nonzero(below != upto, as_tuple=True)
    tag = key[1] << 4 | Stream.REFINE
    bits = philox([ties, *row_words(image_ids[rows], sample_ids[rows], tag)], key_words(key))
    refined = bits[0] << 32 | bits[1]
    part = ties * high.shape[0] // elements
    for _ in range(int((upto - below).max()) if len(ties) else 0):
        at = below[rows, ties]
        passed = (below[rows, ties] < upto[rows, ties]) & _unsigned_le(low[part, at.clamp(max=2 * reach - 1)], refined)
        below[rows, ties] += passed
    return (below - reach).double()


def _unsigned_le(a: Tensor, b: Tensor) -> Tensor:
    flip = -(2**63)
    return (a ^ flip) <= (b ^ flip)


def _gaussian(elements: int, image_ids: Tensor, sample_ids: Tensor, key: Tensor, table: Sequence[Tensor]) -> Tensor:
    tiles = math.ceil(elements / 64)
    words = random_words(64 * tiles, image_ids, sample_ids, key).view(-1, tiles, 64)
    sigma = table[0].double().repeat_interleave(elements // len(table[0]))
    return _normals(words).flatten(1)[:, :elements].double() * sigma


def _normals(words: Tensor) -> Tensor:
    """Normals of the words [..., 64] of tiles, by Box and Muller in float64, rounded to float32: words 0 and 1 of a
    block make the radius and the angle of the normals of elements j and j + 16 of a tile, words 2 and 3 those of j + 32
    and j + 48."""
    pairs = words.unflatten(-1, (2, 2, 16)).double()
    radius = torch.sqrt(-2 * torch.log((pairs[..., 0, :] + 1) * 2.0**-32))
    angle = pairs[..., 1, :] * (2 * math.pi * 2.0**-32)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -2).flatten(-3).float()


LAWS = {"lattice": _lattice, "gaussian": _gaussian}


def _vote(logits: Tensor, _: Tensor | None) -> Tensor:
    """Votes: 1 to the argmax, which may return any of several maxima: the first one is part of the definition."""
    first = (logits == logits.amax(1, keepdim=True)).int().argmax(1, keepdim=True)
    return torch.zeros_like(logits, dtype=torch.int64).scatter_(1, first, 1)


def _by_rank(logits: Tensor, weights: Tensor | None) -> Tensor:
    """Votes by rank: weights[k - 1] to the class of rank k; of equal logits the lower class comes first."""
    assert weights is not None
    ranked = logits.argsort(dim=1, descending=True, stable=True)[:, : len(weights)]
    return torch.zeros_like(logits, dtype=torch.int64).scatter_(1, ranked, weights.expand(len(logits), -1))


def _probabilities(logits: Tensor, _: Tensor | None) -> Tensor:
    """Probabilities, in float64. Kernels compute the terms in float32, and stay within twice the error of softmax in
    float32."""
    return _units(_in_float32(logits).softmax(1), SOFT.unit)


def _clamped_logits(logits: Tensor, _: Tensor | None) -> Tensor:
    most = LARGEST * LOGIT.unit
    return _units(_in_float32(logits).clamp(-most, most), LOGIT.unit)


def _in_float32(logits: Tensor) -> Tensor:
    """The values of float32, to whose ends float64 is clamped, as float64."""
    most = torch.finfo(torch.float32).max
    return logits.double().clamp(-most, most).float().double()


def _units(values: Tensor, unit: float) -> Tensor:
    return (values / unit).round().long()


SHARES = {"prediction": _vote, "weighted": _by_rank, "soft": _probabilities, "logit": _clamped_logits}


def _round_down(value: float) -> float:
    """The largest float32 that is at most value."""
    near = _float32(value)
    return float(torch.nextafter(near, _float32(-math.inf)) if near.double() > value else near)


def _float32(value: float) -> Tensor:
    """A number rounded to the nearest float32; on the host, whatever the default device."""
    return torch.tensor(value, dtype=torch.float64, device="cpu").float()


def _clip(values: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Values between low and high, compared as the kernels do, in the bits of zeros and NaN too."""
    values = torch.where(values < low, low, values)
    return torch.where(values > high, high, values)


def _upper_bound(images: Tensor, eps: float) -> Tensor:
    """The largest float32 that is at most image + eps: TwoSum (Knuth) gives what the sum lost."""
    bound = images + eps
    part = bound - images
    lost = (images - (bound - part)) + (eps - part)
    return torch.where(lost >= 0, bound, torch.nextafter(bound, images))


def _linf(adversarial: Tensor, images: Tensor, gradients: Tensor, alpha: float, eps: float) -> Tensor:
    step = torch.where(gradients > 0, alpha, torch.where(gradients < 0, -alpha, 0.0))
    return _clip(adversarial + step, -_upper_bound(-images, eps), _upper_bound(images, eps))


def norms(values: Tensor) -> Tensor:
    """Norms [N, 1] of float64 [N, E]: lane i of 256 adds elements i, i + 256, ... one by one; then the lanes are
    halved."""
    lanes = torch.nn.functional.pad(values * values, (0, -values.shape[1] % LANES)).unflatten(1, (-1, LANES))
    total = values.new_zeros(len(values), LANES)
    for part in lanes.unbind(1):
        total = total + part
    while total.shape[1] > 1:
        first, second = total.chunk(2, 1)
        total = first + second
    return total.sqrt()


def _quotient(value: float, lengths: Tensor) -> Tensor:
    """Quotients, correctly rounded; `value / lengths` multiplies by the rounded reciprocal."""
    return torch.full_like(lengths, value) / lengths


def _l2(adversarial: Tensor, images: Tensor, gradients: Tensor, alpha: float, eps: float) -> Tensor:
    here, centre, slope = (part.flatten(1).double() for part in (adversarial, images, gradients))
    steep = norms(slope)
    shift = here - centre + torch.where((steep > 0) & steep.isfinite(), slope * _quotient(alpha, steep), 0)
    far, limit = norms(shift), eps * (1 - MARGIN)
    shift = shift * torch.where(far > limit, _quotient(limit, far), 1)
    near = (centre + shift).float()
    beyond = (near.double() - centre).abs() > shift.abs()
    return torch.where(beyond, torch.nextafter(near, centre.float()), near).view(images.shape)


NORMS = {"linf": _linf, "l2": _l2}
