"""Tiny control networks, ours and the reference's, for the tests of the family."""

from __future__ import annotations

import torch

import langevin

_MADE: dict = {}


def controlnets(twins, tmp_path_factory, unet="sd1", seed=0, **config):
    """A control network on both sides, with the same random weights, made for ``unet`` ("sd1" for those that take more
    channels, or a scale): (ours, the reference's)."""
    import diffusers

    key = (twins.folder, unet, seed, *config.items())
    if key not in _MADE:
        torch.manual_seed(seed)
        net = diffusers.ControlNetModel.from_unet(twins(unet=unet)[1].unet, conditioning_embedding_out_channels=(4, 8))
        net.register_to_config(**config)
        for weight in net.parameters():
            if not weight.any():  # those that begin at zero say nothing before they are trained
                torch.nn.init.normal_(weight, std=0.3)
        folder = tmp_path_factory.mktemp("controlnet")
        net.eval().save_pretrained(folder)
        _MADE[key] = langevin.ControlNetModel.from_pretrained(folder), net
    return _MADE[key]


def several(pairs):
    """Pairs of networks as a pair of lists."""
    return tuple(list(side) for side in zip(*pairs, strict=True))
