"""Wrong arguments get the same answer from compiled kernels, fake kernels, the reference and Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from smoothfast.noise import Stream, gaussian_law, lattice_law, stream_key, within
from smoothfast.ops import reference, registration

ROWS, CLASSES, SHAPE = 4, 10, (2, 3, 5, 7)
INDEX, IMAGES = torch.zeros(ROWS, dtype=torch.int64), torch.zeros(SHAPE, dtype=torch.uint8)
FLOATS, THREE, LOGITS = torch.zeros(SHAPE), torch.ones(3), torch.zeros(ROWS, CLASSES)
COUNTS, INVALID = torch.zeros(2, CLASSES, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
TILES, FACTORS, PLACES = torch.zeros(3, 64), torch.zeros(5, 3, 64), torch.zeros(2, 3, dtype=torch.int64)
LATTICE, GAUSSIAN, TWO_SIGMAS = (
    list(law.table) for law in (lattice_law(0.25), gaussian_law(0.25), gaussian_law((1, 2)))
)

GOOD: dict[str, dict[str, Any]] = {
    "noisy_replicas": {
        "images": IMAGES, "slots": INDEX, "image_ids": INDEX, "sample_ids": INDEX, "key": stream_key(0, Stream.PREDICT),
        "law": "lattice", "table": LATTICE, "scale": THREE, "shift": THREE, "clip": False, "dtype": torch.float32,
        "channels_last": False,
    },
    "tally": {
        "logits": LOGITS, "slots": INDEX, "counts": COUNTS, "invalid": INVALID, "voting": "weighted", "weights": INDEX,
    },
    "replica_sum": {"gradients": torch.zeros(ROWS, *SHAPE[1:]), "slots": INDEX, "scale": THREE, "images": 2},
    "attack_step": {
        "adversarial": FLOATS.clone(), "images": FLOATS, "gradients": FLOATS, "norm": "linf", "alpha": 0.1, "eps": 0.5,
        "low": 0.0, "high": 1.0,
    },
    "perturb_weights": {
        "weights": TILES, "scales": TILES, "factors": FACTORS, "tiles": PLACES, "passes": INDEX,
        "key": within(stream_key(0, Stream.PREDICT), Stream.WEIGHT), "dtype": torch.float32,
    },
}  # fmt: skip

# op, what is wrong in it, and how the complaint begins
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("noisy_replicas", {"images": IMAGES[0]}, "images must be [S, C, H, W], not [3, 5, 7]"),
    ("noisy_replicas", {"images": IMAGES.double()}, "images must be uint8 or float32"),
    ("noisy_replicas", {"slots": INDEX[:, None]}, "slots must be int64 [R]"),
    ("noisy_replicas", {"slots": INDEX.int()}, "slots must be int64 [4]"),
    ("noisy_replicas", {"image_ids": INDEX[:3]}, "image_ids must be int64 [4]"),
    ("noisy_replicas", {"sample_ids": INDEX.double()}, "sample_ids must be int64 [4]"),
    ("noisy_replicas", {"key": INDEX}, "key must be int64 [2]"),
    ("noisy_replicas", {"dtype": torch.float64}, "dtype must be float32, bfloat16, float16 or int16"),
    ("noisy_replicas", {"scale": THREE[:2]}, "scale must be float32 [3]"),
    ("noisy_replicas", {"shift": THREE.double()}, "shift must be float32 [3]"),
    ("noisy_replicas", {"law": "cauchy"}, "law must be 'lattice' or 'gaussian', not 'cauchy'"),
    ("noisy_replicas", {"images": FLOATS}, "the lattice law needs uint8 images"),
    ("noisy_replicas", {"table": GAUSSIAN}, "table must come from noise.lattice_law"),
    ("noisy_replicas", {"table": [*LATTICE[:2], LATTICE[2][:0]]}, "table must come from noise.lattice_law"),
    ("noisy_replicas", {"law": "gaussian"}, "table must come from noise.gaussian_law"),
    ("noisy_replicas", {"law": "gaussian", "table": TWO_SIGMAS}, "sigma has 2 entries; the images have 3 channels"),
    ("tally", {"logits": LOGITS[0]}, "logits must be floating [R, K]"),
    ("tally", {"logits": LOGITS.long()}, "logits must be floating [R, K]"),
    ("tally", {"logits": LOGITS.to(torch.float8_e5m2)}, "logits must be float64, float32, bfloat16 or float16"),
    ("tally", {"logits": LOGITS[:, :0]}, "logits must be floating [R, K]"),
    ("tally", {"slots": INDEX[:3]}, "slots must be int64 [4]"),
    ("tally", {"counts": COUNTS[:, :9]}, "counts must be int64 [S, 10]"),
    ("tally", {"counts": COUNTS.int()}, "counts must be int64 [S, 10]"),
    ("tally", {"invalid": INVALID[:1]}, "invalid must be int64 [2]"),
    ("tally", {"voting": "loud"}, "voting must be 'prediction', 'weighted', 'soft' or 'logit', not 'loud'"),
    ("tally", {"weights": None}, "voting 'weighted' needs weights"),
    ("tally", {"voting": "soft"}, "weights belong to voting 'weighted', not to 'soft'"),
    ("tally", {"weights": THREE}, "weights must be int64 [1 .. 10]"),
    ("tally", {"weights": INDEX[:0]}, "weights must be int64 [1 .. 10]"),
    ("tally", {"weights": torch.zeros(11).long()}, "weights must be int64 [1 .. 10]"),
    ("replica_sum", {"gradients": LOGITS}, "gradients must be [R, C, H, W], not [4, 10]"),
    ("replica_sum", {"gradients": torch.zeros(ROWS, *SHAPE[1:]).double()}, "gradients must be float32, bfloat16"),
    ("replica_sum", {"slots": INDEX[:3]}, "slots must be int64 [4]"),
    ("replica_sum", {"scale": THREE[:2]}, "scale must be float32 [3]"),
    ("replica_sum", {"images": -1}, "images must be at least 0, not -1"),
    ("attack_step", {"adversarial": FLOATS[0]}, "adversarial must be float32 [N, C, H, W]"),
    ("attack_step", {"images": FLOATS[:1]}, "images must be float32 [2, 3, 5, 7]"),
    ("attack_step", {"gradients": FLOATS.double()}, "gradients must be float32 [2, 3, 5, 7]"),
    ("attack_step", {"norm": "l1"}, "norm must be 'linf' or 'l2', not 'l1'"),
    ("attack_step", {"alpha": -0.1}, "alpha must be at least 0 and finite in float32, not -0.1"),
    ("attack_step", {"alpha": 2.0**128}, "alpha must be at least 0 and finite in float32"),
    ("attack_step", {"eps": float("nan")}, "eps must be at least 0 and finite, not nan"),
    ("attack_step", {"low": 2.0}, "low must be at most high, not 2"),
    ("perturb_weights", {"weights": TILES[:, :63]}, "weights must be float32 [T, 64]"),
    ("perturb_weights", {"weights": TILES.double()}, "weights must be float32 [T, 64]"),
    ("perturb_weights", {"scales": TILES[:2]}, "scales must be float32 [3, 64]"),
    ("perturb_weights", {"factors": FACTORS[:, :2]}, "factors must be float32 [r, 3, 64]"),
    ("perturb_weights", {"factors": FACTORS.half()}, "factors must be float32 [r, 3, 64]"),
    ("perturb_weights", {"factors": torch.zeros(65, 3, 64)}, "factors have rank 65; at most 64 is possible"),
    ("perturb_weights", {"tiles": PLACES[:, :2]}, "tiles must be int64 [2, 3]"),
    ("perturb_weights", {"tiles": PLACES.int()}, "tiles must be int64 [2, 3]"),
    ("perturb_weights", {"passes": INDEX[None]}, "passes must be int64 [P]"),
    ("perturb_weights", {"key": INDEX}, "key must be int64 [2]"),
    ("perturb_weights", {"dtype": torch.float64}, "dtype must be float32, bfloat16 or float16"),
]  # fmt: skip
CALLS = [pytest.param(*call, id=f"{call[0]}-{'-'.join(call[1])}-{i}") for i, call in enumerate(WRONG)]


def check_refused(function: Callable[..., Any], op: str, wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RuntimeError) as error:
        function(*(GOOD[op] | wrong).values())
    assert str(error.value).startswith(f"{op}: {complaint}")


def on_meta(value: Any) -> Any:
    if isinstance(value, list):
        return [on_meta(part) for part in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(("op", "wrong", "complaint"), CALLS)
def test_wrong_arguments_are_refused(op: str, wrong: dict[str, Any], complaint: str) -> None:
    registered = getattr(torch.ops.smoothfast, op)
    check_refused(registered, op, wrong, complaint)
    check_refused(lambda *arguments: registered(*map(on_meta, arguments)), op, wrong, complaint)
    check_refused(getattr(reference, op), op, wrong, complaint)


@pytest.mark.parametrize(("op", "wrong", "complaint"), CALLS)
def test_triton_refuses_wrong_arguments(op: str, wrong: dict[str, Any], complaint: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    check_refused(registration._triton(op), op, wrong, complaint)


def test_triton_refuses_int16() -> None:
    """Which is for CPUs: networks in integers run there."""
    pytest.importorskip("triton", reason="triton is not installed")
    arguments = GOOD["noisy_replicas"] | {"dtype": torch.int16}
    with pytest.raises(RuntimeError, match="noisy_replicas: dtype int16 is for CPUs; images are on cpu"):
        registration._triton("noisy_replicas")(*arguments.values())


@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op in GOOD for name, value in GOOD[op].items() if isinstance(value, torch.Tensor | list)],
)
def test_tensors_of_two_devices_are_refused(op: str, name: str) -> None:
    """Of which the dispatcher would pick one; the reference asks before it touches them."""
    with pytest.raises(RuntimeError, match=f"{op}: tensors are on .*; all must be on one device"):
        getattr(reference, op)(*(GOOD[op] | {name: on_meta(GOOD[op][name])}).values())


@pytest.mark.parametrize("op", GOOD)
def test_the_good_call_is_accepted(op: str) -> None:
    getattr(torch.ops.smoothfast, op)(*GOOD[op].values())
    getattr(reference, op)(*GOOD[op].values())
