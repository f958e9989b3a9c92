"""Fresh LoRAs to be trained: put into a network, given as a state dict, and taken out again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from langevin.lora import adapters
from langevin.lora.delta import Delta

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers of UNets that LoRAs usually change."""
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The same in CLIP's text models."""

Start = Literal["gaussian", True, False]


def add_lora(
    network: Any,
    rank: int = 4,
    alpha: float | None = None,
    target_modules: Sequence[str] | str = ATTENTION,
    *,
    name: str = "default",
    start: Start = "gaussian",
    dropout: float = 0.0,
    use_dora: bool = False,
    use_rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    generator: Generator | None = None,
) -> list[nn.Parameter]:
    """Put a fresh LoRA into a network, as the only one in use. It changes nothing yet: up is 0.

    The network's own weights are left as they are, gradients included: ``network.requires_grad_(False)`` comes before.

    Args:
        network: any; its linear layers and convolutions can have one.
        rank: r.
        alpha: the LoRA counts alpha / rank times; ``rank`` where None.
        target_modules: how the names of the layers end, ``"to_q"`` for all ``….to_q``; or a regular expression for
            whole names.
        name: of the LoRA.
        start: how down begins. "gaussian": normal with standard deviation 1/rank; True: as linear layers do; False: as
            linear layers do, and up too, so that it changes something at once. Numbers are those of PEFT's LoRAs at the
            same seed.
        dropout: share of its input that it does not see in training.
        use_dora: learn the lengths of the weights' rows too (2402.09353).
        use_rslora: alpha / √rank.
        rank_pattern, alpha_pattern: other ranks and alphas for layers whose names end so.
        dtype: of its weights, whatever the network's is; half precision is not enough to learn in.
        generator: of its random numbers; torch's own where None.

    Returns:
        Its parameters, for an optimiser.

    Raises:
        ValueError: no layer is meant, or the name is taken.

    Example:
        >>> unet.requires_grad_(False)
        >>> optimizer = torch.optim.AdamW(add_lora(unet, rank=4), lr=1e-4)
        >>> StableDiffusionPipeline.save_lora_weights("out", unet_lora_layers=lora_state_dict(unet))
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank is {rank!r}; a whole number of at least 1 is needed")
    meant = {where: layer for where, layer in adapters.layers(network).items() if _is_meant(where, target_modules)}
    if not meant:
        some = ", ".join(list(adapters.layers(network))[:3])
        raise ValueError(f"target_modules is {target_modules!r}, which no layer here is; layers are such as {some}")
    made = {}
    for where in _in_turn(meant):
        layer = meant[where]
        r = int(_of(where, rank_pattern, rank))
        own_alpha = _of(where, alpha_pattern, r if alpha is None else alpha)
        down, up = (tensor.to(dtype) for tensor in _begin(layer, r, start, generator))
        scale = own_alpha / (math.sqrt(r) if use_rslora else r)
        lengths = Delta(down, up).lengths(layer.weight.detach().cpu(), scale).to(dtype) if use_dora else None
        made[where] = Delta(down, up, magnitude=lengths, scale=scale, dropout=dropout, trainable=True)
    adapters.add(network, name, made)
    return lora_parameters(network, name)


def remove_lora(network: Any, name: str = "default") -> None:
    """Take a LoRA out of a network, which then is as before."""
    _check(network, name)
    adapters.remove(network, [name])


def lora_parameters(network: Any, name: str = "default") -> list[nn.Parameter]:
    """A LoRA's parameters, in the order of the network's layers."""
    return [parameter for delta in _deltas(network, name).values() for parameter in delta.parameters()]


def lora_state_dict(network: Any, name: str = "default", form: Literal["file", "peft"] = "file") -> dict[str, Tensor]:
    """A LoRA's weights by name, to be saved or kept; tensors are those in use, not copies.

    Args:
        form: "file": ``<layer>.lora.down.weight``, ``up``, as the reference's files have them; "peft":
            ``<layer>.lora_A.weight``, ``lora_B``.
    """
    held: dict[str, Tensor] = {}
    sides = {"file": (".lora.down.weight", ".lora.up.weight"), "peft": (".lora_A.weight", ".lora_B.weight")}[form]
    for where, delta in _deltas(network, name).items():
        named = {sides[0]: delta.down, sides[1]: delta.up, ".lora_mid.weight": delta.mid}
        lengths = delta.magnitude
        if lengths is not None and delta.down.ndim == 4:
            lengths = lengths.reshape(1, -1, 1, 1)  # as PEFT has them for convolutions
        named |= {".lora_B.bias": delta.bias, ".lora_magnitude_vector": lengths}
        held |= {where + end: tensor.detach() for end, tensor in named.items() if tensor is not None}
    return held


def load_lora_state_dict(network: Any, state: Mapping[str, Tensor], name: str = "default") -> None:
    """Give a LoRA that is in the network the weights of :func:`lora_state_dict`, in either form.

    Raises:
        ValueError: it has other layers, or other shapes.
    """
    form: Literal["file", "peft"] = "peft" if any(".lora_A." in key for key in state) else "file"
    own = lora_state_dict(network, name, form)
    wrong = sorted(own.keys() ^ state.keys()) or [key for key in own if own[key].shape != state[key].shape]
    if wrong:
        raise ValueError(f"the state dict and the LoRA {name!r} differ in {wrong[0]}")
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(state[key])


def lora_metadata(network: Any, name: str = "default") -> dict[str, Any]:
    """What a file's header says of a LoRA: PEFT's settings. Without them alpha is taken to be the rank."""
    deltas = _deltas(network, name)
    ranks = {where: delta.rank for where, delta in deltas.items()}
    alphas = {where: delta.scale * delta.rank for where, delta in deltas.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {where: r for where, r in ranks.items() if r != rank},
        "alpha_pattern": {where: a for where, a in alphas.items() if a != alpha},
        "target_modules": sorted(deltas),
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": any(delta.bias is not None for delta in deltas.values()),
        "use_dora": any(delta.magnitude is not None for delta in deltas.values()),
        "use_rslora": False,
    }


def _commonest(values: Mapping[str, Any]) -> Any:
    listed = list(values.values())
    return max(dict.fromkeys(listed), key=listed.count)


def _check(network: Any, name: str) -> None:
    there = adapters.loaded(network).origins
    if name not in there:
        raise ValueError(f"there is no LoRA {name!r} in this network; there are: {', '.join(there) or 'none'}")


def _deltas(network: Any, name: str) -> dict[str, Delta]:
    _check(network, name)
    found = {where: layer.lora.get(name) for where, layer in adapters.adapted_layers(network).items()}
    return {where: delta for where, delta in found.items() if delta is not None}


def _is_meant(where: str, targets: Sequence[str] | str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, where) is not None
    return any(where == target or where.endswith(f".{target}") for target in targets)


def _of(where: str, patterns: Mapping[str, Any] | None, otherwise: Any) -> Any:
    return next((value for end, value in (patterns or {}).items() if _is_meant(where, [end])), otherwise)


def _in_turn(names: Iterable[str]) -> list[str]:
    """Names of layers in the order in which the reference's networks have them, so that each draws the numbers that it
    draws there: attention before residual blocks, the middle after the way up.
    """
    listed = list(names)
    tops = list(dict.fromkeys(name.split(".")[0] for name in listed))
    if "up_blocks" in tops and "mid_block" in tops:
        tops.remove("mid_block")
        tops.insert(tops.index("up_blocks") + 1, "mid_block")

    def turn(name: str) -> tuple[int, int, int]:
        top, *inside = name.split(".")
        block = int(inside[0]) if inside and inside[0].isdigit() else 0
        kind = next((k for k, kind in enumerate(("attentions", "resnets")) if kind in inside[:2]), 2)
        return tops.index(top), block, kind

    return sorted(listed, key=turn)


def _begin(layer: Any, rank: int, start: Start, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Down and up of a fresh LoRA on a layer."""
    outside, *inside = layer.weight.shape
    if start not in ("gaussian", True, False) or (generator is not None and start != "gaussian"):
        raise ValueError(f"start is {start!r}; True, False, or, with a generator too, 'gaussian' is needed")
    if generator is not None:
        down = torch.empty(rank, *inside).normal_(0, 1 / rank, generator=generator)
        return down, torch.zeros(outside, rank, *[1] * (len(inside) - 1))
    # layers draw their own weights first, so that the numbers after them are PEFT's
    if isinstance(layer, nn.Conv2d):
        first: Any = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False)  # type: ignore[arg-type]
        second: Any = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    else:
        first, second = nn.Linear(inside[0], rank, bias=False), nn.Linear(rank, outside, bias=False)
    down, up = first.weight.detach(), second.weight.detach()
    if start == "gaussian":
        down.normal_(0, 1 / rank)
    elif start is True:
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    return down, up if start is False else up.zero_()
