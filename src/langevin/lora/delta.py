"""What a LoRA adds to one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Delta(nn.Module):
    """W x becomes W x + w·s·B A x, with s = alpha / rank (LoRA: Hu et al. 2021, 2106.09685) and w the weight in use.

    With a ``magnitude`` m the rows of the sum are brought to these lengths: m ⊙ (W + w·s·B A) / |W + w·s·B A|
    (DoRA: Liu et al. 2024, 2402.09353, equation 5; as in its section 4.3 the length gets no gradient).

    It is no part of any state dict: a network's own weights are saved as if it were not there.

    Args:
        down: A, ``(rank, in)``, or ``(rank, in, k, k)`` for a convolution.
        up: B, ``(out, rank)`` or ``(out, rank, 1, 1)``.
        mid: where the convolution is taken apart further: ``(rank, rank, k, k)``, with ``down`` ``(rank, in, 1, 1)``.
        bias: ``(out,)``, of B.
        magnitude: ``(out,)``.
        scale: s.
        dropout: share of x that A does not see in training.
        trainable: whether its weights want gradients.
    """

    down: Tensor
    up: Tensor
    mid: Any
    bias: Any
    magnitude: Any

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        *,
        mid: Tensor | None = None,
        bias: Tensor | None = None,
        magnitude: Tensor | None = None,
        scale: float = 1.0,
        dropout: float = 0.0,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        given = {"down": down, "up": up, "mid": mid, "bias": bias, "magnitude": magnitude}
        for name, tensor in given.items():
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=trainable))
        self.scale, self.dropout = scale, dropout

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def forward(self, x: Tensor, convolve: Callable[..., Tensor] | None = None) -> Tensor:
        """B A x, for a layer that was given x.

        Args:
            convolve: of a convolution: ``convolve(x, weights, bias)`` with its stride and padding.
        """
        h = x.to(self.down.dtype)
        if self.dropout and self.training:
            h = F.dropout(h, self.dropout)
        if convolve is None:
            return F.linear(F.linear(h, self.down), self.up, self.bias)
        if self.mid is None:
            h = convolve(h, self.down, None)
        else:
            h = convolve(F.conv2d(h, self.down), self.mid, None)
        return F.conv2d(h, self.up, self.bias)

    def change(self, x: Tensor, output: Tensor, layer: Any, weight: float) -> Tensor:
        """What comes on top of the layer's own ``output`` for x."""
        scale = weight * self.scale
        added = self(x, layer._conv_forward if isinstance(layer, nn.Conv2d) else None)
        if self.magnitude is None:
            return added * scale
        axis = (-1,) if not isinstance(layer, nn.Conv2d) else (-1, 1, 1)
        longer = self._longer(layer.weight, scale).reshape(axis)
        own = output if layer.bias is None else output - layer.bias.reshape(axis)
        return (longer - 1) * own + longer * scale * added

    def weight_change(self, own: Tensor, weight: float) -> tuple[Tensor, Tensor | None]:
        """What the layer's weights ``own``, and its bias, become more by, in float32."""
        scale = weight * self.scale
        change = scale * self._product().reshape(own.shape)
        if self.magnitude is not None:
            longer = self._longer(own, scale).reshape(-1, *[1] * (own.ndim - 1))
            change = (longer - 1) * own.float() + longer * change
        return change, None if self.bias is None else scale * self.bias.float()

    def _product(self) -> Tensor:
        """B A in float32, ``(out, in, …)``."""
        down, up = self.down.float(), self.up.float()
        if self.mid is not None:
            return torch.einsum("or,rskl,si->oikl", up[..., 0, 0], self.mid.float(), down[..., 0, 0])
        return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])

    def lengths(self, own: Tensor, scale: float) -> Tensor:
        """Of the rows of W + w·s·B A in float32, ``(out,)``, where the layer's weights are W and w·s the scale."""
        whole = own.float() + scale * self._product().reshape(own.shape)
        return whole.flatten(1).norm(dim=1).detach()

    def _longer(self, own: Tensor, scale: float) -> Tensor:
        """By how much each row is made longer, ``(out,)``."""
        lengths = self.lengths(own, scale).clamp_min(torch.finfo(torch.float32).tiny)
        return (self.magnitude.float() / lengths).to(own.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a network's state dict does not have it."""


class Deltas(nn.Module):
    """All that LoRAs add to one layer. It is the layer's child ``lora``, which a forward hook asks.

    Attributes:
        weights: of those in use, by name. Never changed but replaced, so that whoever looks sees one state.
        fused: weights of those that the layer's own weights contain.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, float] = {}
        self.fused: dict[str, float] = {}
        self.handle: Any = None
        for name in ("own_weight", "own_bias"):  # the layer's own, while something is fused
            self.register_parameter(name, None)

    def names(self) -> list[str]:
        return [key[1:].replace("%2e", ".").replace("%25", "%") for key in self._modules]

    def get(self, name: str) -> Any:
        """What the LoRA of this name adds; None if it leaves this layer alone."""
        return self._modules.get(_key(name))

    def put(self, name: str, delta: Delta) -> None:
        self._modules[_key(name)] = delta

    def take(self, name: str) -> None:
        """Take it out, if it is there; those fused stay in the layer's own weights."""
        self.weights = {n: weight for n, weight in self.weights.items() if n != name}
        self._modules.pop(_key(name), None)

    def with_weights(self, weights: dict[str, float]) -> Deltas:
        """The same, sharing all but this."""
        same = Deltas.__new__(Deltas)
        same.__dict__ = {**self.__dict__, "_modules": dict(self._modules), "weights": weights}
        return same

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing of its own."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a network's state dict does not have it."""


def _key(name: str) -> str:
    """A name as that of a module, which may have no points in it, and must not be an attribute's."""
    return "=" + name.replace("%", "%25").replace(".", "%2e")


def add_to_output(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """The forward hook of a layer with :class:`Deltas`."""
    deltas: Deltas | None = layer._modules.get("lora")
    if deltas is None or not deltas.weights:
        return None
    total = output
    for name, weight in deltas.weights.items():
        delta = deltas.get(name)
        if delta is not None and name not in deltas.fused:
            total = total + delta.change(args[0], output, layer, weight).to(output.dtype)
    return total
