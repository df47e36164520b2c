"""The kernels of fused networks, from images to votes, executed as those of `device`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from device import Device, ReplicaArgs, TallyArgs
from ptx_interp import Memory
from torch import Tensor

from smoothfast import ops

KERNELS = {
    "int8": ("fused/integers", "integer_votes_kernel"),
    "bf16": ("fused/bf16", "bf16_votes_kernel"),
    "wide": ("fused/bf16_wide", "bf16_wide_votes_kernel"),
}
SOURCES = ("given", "lattice", "gaussian", "gaussian of floats")
VOTINGS = ("prediction", "weighted", "soft", "logit")


class VotesArgs(ctypes.Structure):
    """`VotesArgs` of csrc/cuda/fused/votes.h, field for field."""

    _fields_ = (
        ("replicas", ReplicaArgs),
        ("votes", TallyArgs),
        ("logits", ctypes.c_uint64),
        ("packed", ctypes.c_uint64),
        ("blocks", ctypes.c_int32),
        ("source", ctypes.c_int32),
        ("voting", ctypes.c_int32),
    )


class FusedDevice(Device):
    """A device that executes the ops of fused networks."""

    def fused_logits(self, replicas: Tensor, packed: Tensor, shape: Sequence[int], arithmetic: str) -> Tensor:
        """As `torch.ops.smoothfast.fused_logits`; replicas are contiguous."""
        mem, args = Memory(), VotesArgs()
        args.replicas.images = self.place(mem, replicas, readonly=True).addr
        return self._run(mem, args, len(replicas), packed, shape, arithmetic)

    def fused_votes(
        self, images: Tensor, slots: Tensor, image_ids: Tensor, sample_ids: Tensor, key: Tensor, law: str,
        table: Sequence[Tensor], scale: Tensor, shift: Tensor, clip: bool, packed: Tensor, shape: Sequence[int],
        arithmetic: str, counts: Tensor, invalid: Tensor, voting: str, weights: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """As `torch.ops.smoothfast.fused_votes`; counts and invalid are contiguous."""
        mem, args = Memory(), VotesArgs()
        args.replicas = self.noise(mem, images, slots, image_ids, sample_ids, key, law, table, scale, shift, clip)
        of_law = "gaussian of floats" if images.is_floating_point() else law
        args.source, args.voting = SOURCES.index(of_law), VOTINGS.index(voting)
        held = [self.place(mem, tensor) for tensor in (counts, invalid)]
        args.votes.slots = args.replicas.slots
        args.votes.counts, args.votes.invalid = (buffer.addr for buffer in held)
        if weights is not None:
            args.votes.weights, args.votes.ranks = self.place(mem, weights, readonly=True).addr, len(weights)
        logits = self._run(mem, args, len(slots), packed, shape, arithmetic)
        for tensor, buffer in zip((counts, invalid), held, strict=True):
            tensor.copy_(torch.from_numpy(buffer.get()).view(torch.int64).view(tensor.shape))
        return logits

    def _run(
        self, mem: Memory, args: VotesArgs, rows: int, packed: Tensor, shape: Sequence[int], arithmetic: str
    ) -> Tensor:
        args.votes.classes = shape[-1]
        logits = torch.full((rows, shape[-1]), 7.0)  # so that what is not written shows
        if rows == 0:
            return logits
        held, network = self.place(mem, logits), self.place(mem, packed, readonly=True)
        guide = 4 * args.replicas.sigmas * args.replicas.entries
        launch = dict(ops.extension.cuda_launch_of_fused_votes(arithmetic, shape[0] == 32, rows, guide))
        args.replicas.guide_bytes = launch["guide_bytes"]
        args.logits = args.votes.logits = held.addr
        args.votes.rows, args.packed, args.blocks = rows, network.addr, shape[3]
        stem, kernel = KERNELS["wide" if shape[0] == 32 else arithmetic.partition("_")[0]]
        samples = 2 if arithmetic.endswith("pairs") else 1
        mark = f"{kernel}E" if shape[0] == 32 else f"{kernel}ILi{samples}E"
        self.launch(stem, (mark,), args, launch, mem)
        return torch.from_numpy(held.get()).view(torch.float32).view(logits.shape)
