"""A network as a function of images and of its own noise.

The noise of all its layers is drawn in one launch, under the numbers of the sample that passes it, and goes in beside
the replicas. So the network itself is a plain one that draws nothing, which every runner can take, and what a sample
gets depends on its numbers alone.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..layers import ActivationNoise, Bank, WeightNoise, bank_of, noisy_layers, plain_weights
from ..modules import shared_copy
from ..ops.philox import within
from ..streams import Stream


class NoisyNetwork:
    """A base classifier and its noise.

    Attributes:
        network: replicas [B, C, H, W] and what `draw` returns, to logits; the base classifier where it has no noise.
        noisy: whether it has. Then all replicas of a forward pass share a draw, so they must be of one sample number,
            and samples of one image each need a pass of their own.
    """

    def __init__(self, base: nn.Module) -> None:
        named = {name: part for name, part in base.named_modules() if isinstance(part, WeightNoise) and part.noisy}
        activations = [part for part in noisy_layers(base) if isinstance(part, ActivationNoise) and part.noisy]
        self.layers, self._activations = list(named.values()), bool(activations)
        self.noisy = bool(named or activations)
        self.network: nn.Module = base
        if self.noisy:
            self.network = _Plain(base, [f"{name}.weight".lstrip(".") for name in named])
        self._bank: Bank | None = None
        self._versions: list[Any] = []

    def refresh(self) -> None:
        """Takes over weights and strengths of noise that have changed."""
        tensors = [tensor for layer in self.layers for tensor in layer.parameters(recurse=False)]
        versions = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self.layers and versions != self._versions:
            with torch.no_grad():
                self._bank, self._versions = bank_of(self.layers), versions

    def draw(self, key: Tensor, passes: Tensor) -> tuple[Tensor, ...]:
        """The noise of a pass, as inputs of the network.

        Args:
            key: int64 [2] of the samples that pass.
            passes: int64 [1], their number.
        """
        if self._bank is None:
            self.refresh()
        return self._inputs(self._bank, key, passes)

    def run(self, replicas: Tensor, key: Tensor, passes: Tensor) -> Any:
        """Logits [B, K] of a pass, with gradients with respect to the replicas, to the present weights and to the
        strengths of noise. Arguments as of `draw`."""
        bank = bank_of(self.layers) if self.layers else None
        return self.network(replicas, *self._inputs(bank, key, passes))

    def run_frozen(self, replicas: Tensor, key: Tensor, passes: Tensor) -> Any:
        """Logits [B, K] as of `run`, with gradients with respect to the replicas alone."""
        self.refresh()
        inputs = (replicas, *self.draw(key, passes))
        if any(isinstance(part, torch.jit.ScriptModule) for part in self.network.modules()):
            with torch.no_grad():
                network = deepcopy(self.network)  # functional_call takes no TorchScript
            for parameter in network.parameters():
                parameter.requires_grad_(False)
            return network(*inputs)
        frozen = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        return functional_call(self.network, frozen, inputs)

    def _inputs(self, bank: Bank | None, key: Tensor, passes: Tensor) -> tuple[Tensor, ...]:
        drawn = [] if bank is None else [weights[0] for weights in bank.draw(passes, within(key, Stream.WEIGHT))]
        return (*drawn, key, passes) if self._activations else tuple(drawn)


class _Plain(nn.Module):
    """A copy of a network, which shares all parameters and buffers with it, with plain layers in place of noisy ones:
    they take the weights that come with the replicas. What is left of the inputs is key and pass of the noise on
    activations."""

    def __init__(self, base: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.base, self.names = plain_weights(shared_copy(base)), names
        self.train(base.training)

    def forward(self, replicas: Tensor, *drawn: Tensor) -> Any:
        weights, numbers = drawn[: len(self.names)], drawn[len(self.names) :]
        for part in noisy_layers(self.base):
            part.given = numbers  # type: ignore[assignment]
        return functional_call(self.base, dict(zip(self.names, weights, strict=True)), (replicas,))
