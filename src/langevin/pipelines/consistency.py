"""Pictures in one step, or a few: consistency models, Song, Dhariwal, Chen & Sutskever 2023 (2303.01469)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from langevin.checks import Count
from langevin.codecs.pixels import PixelCodec
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.call import Call
from langevin.pipelines.dit import Label
from langevin.pipelines.given import takes
from langevin.pipelines.unconditional import UnconditionalGiven, UnconditionalPipeline


@dataclass(frozen=True, kw_only=True)
class ConsistencyGiven(UnconditionalGiven):
    """Arguments of :class:`ConsistencyModelPipeline`.

    Args:
        class_labels: numbers of classes, one for all pictures or one for each, where the network knows classes; None
            draws one for each.
        num_inference_steps: 1, or a few for finer pictures.
        timesteps: places among the levels of training to visit instead, descending; the last is visited first, as in
            the reference.
        latents: start from this instead of noise, ``(batch, channels, height, width)``.
    """

    class_labels: Label | Sequence[Label] | Tensor | None = None
    num_inference_steps: Count = 1
    timesteps: Sequence[int] | None = None
    latents: Tensor | None = None

    positional = (
        "batch_size class_labels num_inference_steps timesteps generator latents output_type return_dict callback "
        "callback_steps"
    )

    def __post_init__(self) -> None:
        if isinstance(self.class_labels, Tensor):
            object.__setattr__(self, "class_labels", self.class_labels.tolist())
        super().__post_init__()


class ConsistencyModelPipeline(UnconditionalPipeline):
    """Pictures in one step, or a few, with a consistency model (Song, Dhariwal, Chen & Sutskever 2023, 2303.01469,
    algorithm 1).

    Example:
        >>> from langevin import ConsistencyModelPipeline
        >>> pipe = ConsistencyModelPipeline.from_pretrained("openai/diffusers-cd_imagenet64_l2")
        >>> image = pipe(class_labels=145, seed=7).images[0]
    """

    @takes(ConsistencyGiven)
    def __call__(self, given: ConsistencyGiven) -> Any:
        """Make ``batch_size`` pictures.

        Raises:
            ValueError: classes are of another number than pictures, or the network does not know them.
        """
        named = given.timesteps is not None
        run = self.scheduler.plan(None if named else given.num_inference_steps, timesteps=given.timesteps)
        call = Call(self, given, given.batch_size)
        codec, side = PixelCodec(self.unet.config.in_channels), self.unet.config.sample_size
        shape = codec.shape(given.batch_size, (side, side) if isinstance(side, int) else side)
        more: dict[str, Any] = {"run": run, "codec": codec, "latents": given.latents, "dtype": self.unet.dtype}
        stage = call.stage(self.unet, self.scheduler, shape, guiders=given.guiders, **more)
        stage.first_noise()  # before classes are drawn
        labels = self.labels(call, given)
        if labels is not None:
            stage.told["class_labels"] = torch.tensor(labels, device=stage.device)
        return ImagePipelineOutput(call.deliver(call.decode(stage, call.denoise(stage)), batch_size=None))

    def labels(self, call: Call, given: ConsistencyGiven) -> list[int] | None:
        """The class of each picture: those given, else drawn; None where the network knows no classes."""
        classes, told = self.unet.config.num_class_embeds, given.class_labels
        if classes is None:
            if told is not None:
                raise ValueError("class_labels are given to a network that knows no classes; leave them out")
            return None
        if told is None:
            return [call.noise.whole(classes, row) for row in range(given.batch_size)]
        labels = [told] * given.batch_size if isinstance(told, int) else list(told)
        if len(labels) != given.batch_size or max(labels) >= classes:
            wanted = f"{given.batch_size} whole numbers from 0 to {classes - 1} are needed"
            raise ValueError(f"class_labels are {labels}; {wanted}")
        return labels
