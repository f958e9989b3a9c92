"""The residual block of every UNet and autoencoder."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from langevin.models.layers.activation import activation, dropout
from langevin.models.layers.normalization import AdaGroupNorm, SpatialNorm

EMBEDDING_USES = ("default", "scale_shift", "ada_group", "spatial")


class ResnetBlock(nn.Module):
    """Norm, activation, convolution, twice, beside a shortcut (the block of DDPM: Ho et al., 2020, appendix B).

    Args:
        embedding_dim: width of ``emb``; None for a block that is told no time.
        embedding_use: where ``emb`` goes. ``default``: added before the second norm; ``scale_shift``: scales and shifts
            after it (Dhariwal & Nichol, 2021); ``ada_group``: both norms are :class:`AdaGroupNorm`; ``spatial``: both
            are :class:`SpatialNorm` and ``emb`` is a map.
        kernel: size of the convolutions.
        inner_channels: between the two convolutions; None: ``out_channels``.
        groups, groups_out: groups of the first and second norm.
        resample: a function that halves or doubles a map, applied inside the block and on the shortcut.
        activate_embedding: whether ``emb`` goes through the activation before its linear layer.
        output_scale: the sum is divided by it.

    Shapes: ``x`` (batch, in_channels, h, w), ``emb`` (batch, embedding_dim); returns (batch, out_channels, h', w').
    ``size`` (height, width) is handed to ``resample`` where it is not simply twice or half.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        inner_channels: int | None = None,
        embedding_dim: int | None = None,
        embedding_use: str = "default",
        groups: int = 32,
        groups_out: int | None = None,
        eps: float = 1e-6,
        act: str = "silu",
        dropout_p: float = 0.0,
        resample: Callable[..., Tensor] | None = None,
        activate_embedding: bool = True,
        output_scale: float = 1.0,
        shortcut: bool | None = None,
        shortcut_bias: bool = True,
    ) -> None:
        super().__init__()
        if embedding_use not in EMBEDDING_USES:
            raise ValueError(
                f"resnet_time_scale_shift={embedding_use!r} is unknown; use one of: {', '.join(EMBEDDING_USES)}"
            )
        self.embedding_use, self.resample, self.output_scale = embedding_use, resample, float(output_scale)
        self.norm_takes_embedding = embedding_dim is not None and embedding_use in ("ada_group", "spatial")

        def norm(channels: int, groups: int) -> nn.Module:
            if embedding_dim is not None and embedding_use == "ada_group":
                return AdaGroupNorm(embedding_dim, channels, groups, eps)
            if embedding_dim is not None and embedding_use == "spatial":
                return SpatialNorm(channels, embedding_dim)
            return nn.GroupNorm(groups, channels, eps)

        self.norm1 = norm(in_channels, groups)
        inner = inner_channels or out_channels
        self.conv1 = nn.Conv2d(in_channels, inner, kernel, padding=kernel // 2)
        self.time_emb_proj = None
        if embedding_dim is not None and not self.norm_takes_embedding:
            self.time_emb_proj = nn.Linear(embedding_dim, inner * (2 if embedding_use == "scale_shift" else 1))
        self.norm2 = norm(inner, groups_out or groups)
        self.dropout = dropout(dropout_p)
        self.conv2 = nn.Conv2d(inner, out_channels, kernel, padding=kernel // 2)
        self.conv_shortcut = None
        if in_channels != out_channels if shortcut is None else shortcut:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=shortcut_bias)
        self.act = activation(act)
        self.activate_embedding = activate_embedding

    def forward(self, x: Tensor, emb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        # One step a line, under one name: each map is freed as soon as the next is there.
        h = self.norm1(x, emb) if self.norm_takes_embedding else self.norm1(x)
        h = self.act(h)
        if self.resample is not None:
            to = () if size is None else (size,)
            x, h = self.resample(x, *to), self.resample(h, *to)
        h = self.conv1(h)

        if self.time_emb_proj is None:
            h = self.norm2(h, emb) if self.norm_takes_embedding else self.norm2(h)
        else:
            emb = self.time_emb_proj(self.act(emb) if self.activate_embedding else emb)[:, :, None, None]
            if self.embedding_use == "scale_shift":
                scale, shift = emb.chunk(2, dim=1)
                h = self.norm2(h)
                h = h * (1 + scale)
                h = h + shift
            else:
                h = h + emb
                h = self.norm2(h)

        h = self.act(h)
        h = self.dropout(h)
        h = self.conv2(h)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        h = x + h
        return h if self.output_scale == 1.0 else h / self.output_scale
