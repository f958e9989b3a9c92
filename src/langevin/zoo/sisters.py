"""What the sisters of ``langevin/shapes`` share: its frozen parts, a smaller UNet begun from its UNet, the loss.

A sister (inpainting, instructions, outlines) uses the text encoder, the tokenizer and the autoencoder of
``langevin/shapes`` as they are and ships only a network of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from langevin.checkpoints.model_index import PARTS_FROM
from langevin.zoo.loop import noise_levels
from langevin.zoo.train_text_to_image import ATTENTION, UNET, encode, tokenize, write_index


@dataclass(frozen=True)
class Frozen:
    """The parts of ``langevin/shapes``, in float32, none of them trained."""

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any

    @classmethod
    def load(cls, model: str | Path) -> Frozen:
        """Take the parts of the pipeline in the folder ``model``."""
        from langevin import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
        for part in (pipe.vae, pipe.text_encoder, pipe.unet):
            part.eval().requires_grad_(False)
        return cls(pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, pipe.scheduler)

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """What the text encoder says about texts, (n, 32, 128)."""
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(ATTENTION):
            return self.text_encoder(tokenize(self.tokenizer, texts)).last_hidden_state.float()

    def latents(self, images: Tensor) -> Tensor:
        """Scaled latents of images, (n, 3, 64, 64) in [-1, 1] to (n, 4, 16, 16)."""
        return encode(self.vae, images)

    def loss(
        self,
        clean: Tensor,
        generator: torch.Generator,
        predict: Callable[[Tensor, Tensor], Tensor],
        shift: float = -0.4,
    ) -> Tensor:
        """Mean squared error of ``predict(noised, timesteps)`` against the velocity, at fresh :func:`noise_levels`."""
        levels = self.scheduler.config.num_train_timesteps
        noise = torch.randn(clean.shape, generator=generator)
        t = (noise_levels(len(clean), generator, shift) * levels).long().clamp(max=levels - 1)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(ATTENTION):
            predicted = predict(self.scheduler.add_noise(clean, noise, t), t)
        return nn.functional.mse_loss(predicted.float(), self.scheduler.get_velocity(clean, noise, t))


# ------------------------------------------------------------------------------------------------ the smaller UNet


def smaller_unet(
    unet: Any, extra_channels: int = 0, middle: bool = True, narrow: bool = False, pooled_text: bool = True
) -> Any:
    """A UNet of two stages made of the upper two of the three of ``unet``, with ``extra_channels`` more inputs.

    The lowest stage is left out, and its middle is replaced by a new one or by none. Every tensor that has a place
    in the smaller network is taken over. The extra inputs begin with weights of zero. A ``narrow`` network keeps
    three of every four channels; without ``pooled_text`` only cross-attention sees the text.
    """
    from langevin import UNet2DConditionModel

    config = UNET | {
        "in_channels": UNET["in_channels"] + extra_channels,
        "block_out_channels": tuple(width * 3 // 4 if narrow else width for width in UNET["block_out_channels"][:2]),
        "norm_num_groups": UNET["norm_num_groups"] // 2 if narrow else UNET["norm_num_groups"],
        "down_block_types": UNET["down_block_types"][:2],
        "up_block_types": UNET["up_block_types"][1:],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "addition_embed_type": UNET["addition_embed_type"] if pooled_text else None,
    }
    small = UNet2DConditionModel(**config)
    large = unet.state_dict()
    state = small.state_dict()
    for name, tensor in state.items():
        source = large.get(_in_three_stages(name))
        if source is not None:
            source = thinned(source.float(), tensor.shape) if narrow else source.float()
            _take_over(tensor, source, from_the_end=name != "conv_in.weight")
    small.load_state_dict(state)
    return small


def thinned(source: Tensor, wanted: Sequence[int]) -> Tensor:
    """Three of every four entries along the axes that have not the wanted length."""
    for axis, length in enumerate(wanted):
        if source.shape[axis] != length:
            source = source.index_select(axis, torch.tensor([i for i in range(source.shape[axis]) if i % 4 != 3]))
    return source


def _in_three_stages(name: str) -> str | None:
    """What a tensor of the two-stage network is called in the three-stage one; None for the new middle."""
    if name.startswith("mid_block."):
        return None
    return name.replace("up_blocks.1.", "up_blocks.2.").replace("up_blocks.0.", "up_blocks.1.")


def _take_over(tensor: Tensor, source: Tensor, from_the_end: bool) -> None:
    """Copy ``source`` into ``tensor``; where the numbers of inputs differ, the last (or first) ones that both have."""
    if tensor.shape == source.shape:
        tensor.copy_(source)
        return
    axis = tensor.dim() - 1 if tensor.dim() == 1 else 1
    shared = min(tensor.shape[axis], source.shape[axis])
    tensor.zero_()
    here, there = (part.shape[axis] - shared if from_the_end else 0 for part in (tensor, source))
    tensor.narrow(axis, here, shared).copy_(source.narrow(axis, there, shared))


# ------------------------------------------------------------------------------------------------ saving


def save(out: Path, pipeline: str, unet: Any, scheduler: Any, defaults: dict[str, float]) -> None:
    """Write the UNet (in half precision), the scheduler and the index of a sister's pipeline.

    The index names all parts; those without a folder here are taken from ``langevin/shapes``.
    """
    copy.deepcopy(unet).half().save_pretrained(out / "unet")
    scheduler.save_pretrained(out / "scheduler")
    write_index(out, pipeline, defaults, **{PARTS_FROM: "langevin/shapes"})
