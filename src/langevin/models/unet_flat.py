"""The UNet that denoises vectors and looks at a text or a picture: Versatile Diffusion's text flow."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.layers.flat import PLACES, FlatLinear, FlatNorm
from langevin.models.unet_2d_condition import UNet2DConditionModel
from langevin.signatures import also_takes

Form = int | tuple[int, ...]


class UNetFlatConditionModel(UNet2DConditionModel):
    """A UNet whose maps are vectors (Xu, Wang, Zhang, Wang & Shi 2022, 2211.08332, section 3.2): each of its stages has
    ``block_out_channels`` channels with four places, and linear layers over them where others have convolutions.

    Versatile Diffusion's pipelines that make pictures take its attention, which has learned to look at texts; the rest
    is there for networks that make texts.

    Args:
        in_channels, out_channels: the forms of what it takes and gives, ``(768, 1, 1)``, or a number of channels with
            four places, ``(channels, 4, 1)``.
        down_block_types, mid_block_type, up_block_types: those with ``Flat`` in their names.
        common: as in :class:`~langevin.UNet2DConditionModel`. Sizes of convolutions do nothing.

    Raises:
        ValueError: for stages that are not flat, and for settings that fit no network.

    Example:
        >>> from langevin import UNetFlatConditionModel
        >>> unet = UNetFlatConditionModel.from_pretrained("shi-labs/versatile-diffusion", subfolder="text_unet")
        >>> unet(torch.randn(1, 768, 1, 1), 500, text).sample.shape
        torch.Size([1, 768, 1, 1])
    """

    #: published folders say "versatile_diffusion"; the reference finds it under this name alone
    library_name = "diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet"
    _norm = FlatNorm

    @register_to_config
    @also_takes(UNet2DConditionModel.__init__, evaluate=True)
    def __init__(
        self,
        in_channels: Form = 4,
        out_channels: Form = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlockFlat",) * 3 + ("DownBlockFlat",),
        mid_block_type: str | None = "UNetMidBlockFlatCrossAttn",
        up_block_types: tuple[str, ...] = ("UpBlockFlat",) + ("CrossAttnUpBlockFlat",) * 3,
        **common: Any,
    ) -> None:
        stages = dict(down_block_types=down_block_types, mid_block_type=mid_block_type, up_block_types=up_block_types)
        super().__init__(in_channels=in_channels, out_channels=out_channels, **stages, **common)  # type: ignore[arg-type]

    def _form(self, setting: str) -> tuple[int, ...]:
        form = self.config[setting]
        return (form, PLACES, 1) if isinstance(form, int) else tuple(form)

    def _first_layer(self, width: int) -> nn.Module:
        return FlatLinear(prod(self._form("in_channels")), width * PLACES)

    def _last_layer(self, width: int) -> nn.Module:
        return FlatLinear(width * PLACES, prod(self._form("out_channels")))

    @staticmethod
    def _check_families(families: set[str]) -> None:
        if families != {"flat"}:
            raise ValueError("this network's maps are vectors; choose stages with Flat in their names")

    def _check_sample(self, sample: Tensor) -> None:
        wanted = self._form("in_channels")
        if tuple(sample.shape[1:]) != wanted:
            form = ", ".join(map(str, wanted))
            raise ValueError(f"sample has shape {tuple(sample.shape)}; this network takes (batch, {form})")

    def forward(self, sample: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """Predict: ``(batch, *out_channels)`` for a ``sample`` of ``(batch, *in_channels)``; all else as in
        :class:`~langevin.UNet2DConditionModel`.
        """
        output: Any = super().forward(sample, *args, **kwargs)
        output.sample = output.sample.reshape(len(sample), *self._form("out_channels"))
        return output if return_dict else (output.sample,)
