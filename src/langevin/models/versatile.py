"""Versatile Diffusion's flows: one UNet, and attention for each kind of thing that it may look at (Xu, Wang, Zhang,
Wang & Shi 2022, 2211.08332, section 3.2).

The image UNet's attention looks at pictures, the text UNet's at texts; residual blocks are those of what is made. Each
flow is a twin that shares weights with the networks that it is made of, and leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from langevin.models.encoders.twin import twin
from langevin.models.layers.map_attention import run_of
from langevin.models.layers.transformer import DualTransformer2D, Transformer2D
from langevin.models.unet_2d_condition import UNet2DConditionModel

TEXT, IMAGE = 1, 0
"""Places of the two in a :class:`~langevin.models.layers.transformer.DualTransformer2D`, as checkpoints have them."""


def text_flow(image_unet: Any, text_unet: Any) -> UNet2DConditionModel:
    """A network that makes pictures and looks at texts.

    Args:
        image_unet: whose attention looks at pictures; at both, where its ``dual_cross_attention`` is on; at texts,
            where there is no ``text_unet``.
        text_unet: whose attention looks at texts, or None.

    Raises:
        ValueError: the two have attention at other places.
    """
    return _looking(image_unet, {name: pair[TEXT] for name, pair in _pairs(image_unet, text_unet).items()})


def image_flow(image_unet: Any) -> UNet2DConditionModel:
    """A network that makes pictures and looks at pictures; ``image_unet`` as in :func:`text_flow`."""
    return _looking(image_unet, {name: pair[IMAGE] for name, pair in _pairs(image_unet, None).items()})


def dual_flow(image_unet: Any, text_unet: Any) -> UNet2DConditionModel:
    """A network that makes pictures and looks at both, with ``dual_cross_attention``; arguments and errors are those of
    :func:`text_flow`.
    """
    pairs = _pairs(image_unet, text_unet)
    made = _looking(image_unet, {name: DualTransformer2D.of(*pair) for name, pair in pairs.items()})
    made.register_to_config(dual_cross_attention=True)
    return made


class DualFlow:
    """Looks at a text and a picture at once: what the two make of a map is added, weighed ``strength`` to
    ``1 - strength``. All else (config, device, layers) is the network's.

    Args:
        unet: what :func:`dual_flow` gives.
        strength: the text's share, 0 to 1.
    """

    def __init__(self, unet: Any, strength: float) -> None:
        self.unet, self.strength = unet, strength

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unet, name)

    def __call__(
        self,
        x: Tensor,
        timestep: Any,
        *,
        encoder_hidden_states: Tensor,
        image_states: Tensor,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        **told: Any,
    ) -> Any:
        """Predict.

        Args:
            x: ``(rows, channels, height, width)``.
            timestep: a number, or one for each row.
            encoder_hidden_states: the text, ``(rows, tokens, dim)``.
            image_states: the picture, ``(rows, places, dim)``.
            cross_attention_kwargs, told: further arguments of the UNet.
        """
        both = encoder_hidden_states, image_states
        lengths = tuple(tokens.shape[1] for tokens in both)
        mix = {"ratio": self.strength, "lengths": lengths, "order": (TEXT, IMAGE)}
        more = {**(cross_attention_kwargs or {}), "dual": mix}
        return self.unet(x, timestep, torch.cat(both, dim=1), cross_attention_kwargs=more, **told)


def _transformers(unet: Any) -> dict[str, Any]:
    """What looks at texts or pictures in a network, by name."""
    unet = getattr(unet, "_orig_mod", unet)
    duals = {name: layer for name, layer in unet.named_modules() if isinstance(layer, DualTransformer2D)}
    singles = {name: layer for name, layer in unet.named_modules() if isinstance(layer, Transformer2D)}
    return duals or singles


def _pairs(image_unet: Any, text_unet: Any) -> dict[str, tuple[nn.Module, nn.Module]]:
    """What looks at pictures and what at texts, by the place in the network."""
    own = _transformers(image_unet)
    if any(isinstance(layer, DualTransformer2D) for layer in own.values()):
        return {name: (layer.transformers[IMAGE], layer.transformers[TEXT]) for name, layer in own.items()}
    others = own if text_unet is None else _transformers(text_unet)
    if own.keys() != others.keys():
        odd = sorted(own.keys() ^ others.keys())[0]
        raise ValueError(f"image_unet and text_unet need attention at the same places; only one has it at {odd}")
    return {name: (layer, others[name]) for name, layer in own.items()}


def _looking(unet: Any, parts: Mapping[str, nn.Module]) -> Any:
    """A network with other transformers."""
    made = twin(unet, parts)
    for name in parts:
        stage = made.get_submodule(name.rpartition(".attentions.")[0])
        stage._run_attention = run_of(stage.attentions[0])
    return made
