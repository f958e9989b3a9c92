"""What networks return: a small record whose fields are also its items."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


class Output:
    """Base of the records: ``out.sample``, ``out["sample"]`` and ``out[0]`` are the same; None fields are left out."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        values = (getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]
        return tuple(v for v in values if v is not None)

    def keys(self) -> list[str]:
        """Names of the fields that are not None."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(f"{type(self).__name__} has no {key!r}; it has: {', '.join(self.keys())}")
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self):
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.to_tuple())


@dataclass
class UNet2DOutput(Output):
    """``sample`` (batch, out_channels, height, width): what the network predicts."""

    sample: Tensor


@dataclass
class UNet2DConditionOutput(Output):
    """``sample`` (batch, out_channels, height, width): what the network predicts."""

    sample: Tensor


@dataclass
class DecoderOutput(Output):
    """``sample`` (batch, channels, height, width), pictures in about [-1, 1]."""

    sample: Tensor


@dataclass
class AutoencoderKLOutput(Output):
    """``latent_dist``: a :class:`~langevin.models.distributions.DiagonalGaussianDistribution` over latents."""

    latent_dist: Any
