"""Time, class, text and image embeddings: what a network is told beside the picture, as one vector or as tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from langevin.models.layers.activation import activation


def per_sample(value: Tensor | float | int, like: Tensor) -> Tensor:
    """``value`` (a number, or a tensor of 0 or 1 dimensions) once for every picture of ``like``, on its device.

    Numbers are written by the device itself, so that the host does not wait for it. Floats stay at least float32:
    a timestep of 750 is 752 in bfloat16.
    """
    batch = like.shape[0]
    if not torch.is_tensor(value):
        return torch.full((batch,), value, device=like.device, dtype=torch.float32)
    if value.ndim > 1 or value.numel() not in (1, batch):
        raise ValueError(
            f"timestep has shape {tuple(value.shape)} for a batch of {batch}; "
            f"give a number, or a tensor of shape () or ({batch},)"
        )
    return value.to(like.device).expand(batch)


def sinusoid(t: Tensor, dim: int, *, cos_first: bool = False, freq_shift: float = 0) -> Tensor:
    """sin and cos of ``t`` (batch,) at ``dim // 2`` frequencies from 1 to nearly 1/10000, in float32: (batch, dim).

    freq_i = 10000^(-i / (dim//2 - freq_shift)): Vaswani et al., 2017, section 3.5, as in DDPM (Ho et al., 2020).
    """
    half = dim // 2
    steps = torch.arange(half, device=t.device, dtype=torch.float32)
    angle = t[:, None].float() * torch.exp(steps * -math.log(10000) / (half - freq_shift))
    parts = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
    emb = torch.cat(parts, dim=-1)
    return nn.functional.pad(emb, (0, 1)) if dim % 2 else emb


class Timesteps(nn.Module):
    """:func:`sinusoid` as a module without weights."""

    def __init__(self, dim: int, cos_first: bool = False, freq_shift: float = 0) -> None:
        super().__init__()
        self.dim, self.cos_first, self.freq_shift = dim, cos_first, freq_shift

    def forward(self, t: Tensor) -> Tensor:
        return sinusoid(t, self.dim, cos_first=self.cos_first, freq_shift=self.freq_shift)


class FourierFeatures(nn.Module):
    """sin and cos of ``t`` at random fixed frequencies (Tancik et al., 2020): (batch,) -> (batch, 2 * dim).

    ``log``: of log t (Song et al., 2021).
    """

    def __init__(self, dim: int, *, scale: float = 1.0, log: bool = False, cos_first: bool = False) -> None:
        super().__init__()
        self.log, self.cos_first = log, cos_first
        self.weight = nn.Parameter(torch.randn(dim) * scale, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        t = torch.log(t) if self.log else t
        angle = t[:, None] * self.weight * (2 * math.pi)
        parts = (angle.cos(), angle.sin()) if self.cos_first else (angle.sin(), angle.cos())
        return torch.cat(parts, dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers with an activation between: (batch, in_dim) -> (batch, out_dim or dim).

    ``condition_dim``: a second input of this width is projected and added first (Meng et al., 2023: guidance scale).
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        act: str = "silu",
        post_act: str | None = None,
        condition_dim: int | None = None,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.cond_proj = nn.Linear(condition_dim, in_dim, bias=False) if condition_dim is not None else None
        self.linear_2 = nn.Linear(dim, out_dim or dim)
        self.act = activation(act)
        self.post_act = activation(post_act) if post_act is not None else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            if self.cond_proj is None:
                raise ValueError("timestep_cond was given to a network without time_cond_proj_dim; leave it out")
            x = x + self.cond_proj(condition)
        x = self.linear_2(self.act(self.linear_1(x)))
        return x if self.post_act is None else self.post_act(x)


class CodeEmbedding(nn.Module):
    """Codes of a picture, row by row, as tokens that know their place: (batch, height * width) -> (batch, …, dim).

    Raises:
        ValueError: they are no whole numbers below ``codes``, or more than there are places.
    """

    def __init__(self, codes: int, dim: int, height: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(codes, dim)
        self.height_emb = nn.Embedding(height, dim)
        self.width_emb = nn.Embedding(width, dim)

    def forward(self, codes: Tensor) -> Tensor:
        height, width = self.height_emb.num_embeddings, self.width_emb.num_embeddings
        places = height * width
        if codes.ndim != 2 or codes.is_floating_point() or codes.shape[1] > places:
            given = f"{tuple(codes.shape)}, {codes.dtype}"
            raise ValueError(f"codes are {given}; (batch, {places}) whole numbers are needed")
        rows, columns = (torch.arange(side, device=codes.device) for side in (height, width))
        grid = self.height_emb(rows)[:, None] + self.width_emb(columns)
        return self.emb(codes) + grid.flatten(0, 1)[: codes.shape[1]]


class AttentionPooling(nn.Module):
    """Tokens -> one vector: attention asked by their mean, as at the end of CLIP's ResNets (Radford et al., 2021).

    (batch, tokens, dim) -> (batch, dim).
    """

    def __init__(self, heads: int, dim: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"{heads} heads do not divide a width of {dim}; choose addition_embed_type_num_heads that do"
            )
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, dim) / dim**0.5)
        self.k_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        mean = tokens.mean(dim=1, keepdim=True) + self.positional_embedding.to(tokens.dtype)
        tokens = torch.cat([mean, tokens], dim=1)
        q, k, v = (
            proj(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for proj, x in ((self.q_proj, mean), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        return nn.functional.scaled_dot_product_attention(q, k, v).flatten(1)


class TextTimeEmbedding(nn.Module):
    """A whole text as one vector to add to the time embedding: (batch, tokens, dim) -> (batch, out_dim)."""

    def __init__(self, dim: int, out_dim: int, heads: int = 64) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.pool = AttentionPooling(heads, dim)
        self.proj = nn.Linear(dim, out_dim)
        self.norm2 = nn.LayerNorm(out_dim)

    def forward(self, text: Tensor) -> Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(text))))


class TextImageTimeEmbedding(nn.Module):
    """A text vector and an image vector, added: (batch, text_dim), (batch, image_dim) -> (batch, out_dim)."""

    def __init__(self, text_dim: int, image_dim: int, out_dim: int) -> None:
        super().__init__()
        self.text_proj = nn.Linear(text_dim, out_dim)
        self.text_norm = nn.LayerNorm(out_dim)
        self.image_proj = nn.Linear(image_dim, out_dim)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.image_proj(image) + self.text_norm(self.text_proj(text))


class ImageTimeEmbedding(nn.Module):
    """An image vector to add to the time embedding: (batch, dim) -> (batch, out_dim)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(dim, out_dim)
        self.image_norm = nn.LayerNorm(out_dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.image_norm(self.image_proj(image))


class ImageHintTimeEmbedding(nn.Module):
    """As :class:`ImageTimeEmbedding`, and a hint picture turned into a map of an eighth of its size.

    (batch, dim), (batch, 3, h, w) -> (batch, out_dim), (batch, 4, h/8, w/8).
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.image_proj = nn.Linear(dim, out_dim)
        self.image_norm = nn.LayerNorm(out_dim)
        widths, strides = (3, 16, 16, 32, 32, 96, 96, 256, 4), (1, 1, 2, 1, 2, 1, 2, 1)
        layers: list[nn.Module] = []
        for narrow, wide, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers += [nn.Conv2d(narrow, wide, 3, stride=stride, padding=1), nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers[:-1])

    def forward(self, image: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_norm(self.image_proj(image)), self.input_hint_block(hint)


class ImageProjection(nn.Module):
    """One image vector -> a few tokens: (batch, dim) -> (batch, tokens, out_dim)."""

    def __init__(self, dim: int, out_dim: int, tokens: int = 32) -> None:
        super().__init__()
        self.tokens = tokens
        self.image_embeds = nn.Linear(dim, tokens * out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.image_embeds(image).unflatten(1, (self.tokens, -1)))


class TextImageProjection(nn.Module):
    """Tokens made of one image vector, before the projected text (Kandinsky 2.1).

    (batch, n, text_dim), (batch, image_dim) -> (batch, tokens + n, out_dim).
    """

    def __init__(self, text_dim: int, image_dim: int, out_dim: int, tokens: int = 10) -> None:
        super().__init__()
        self.tokens = tokens
        self.image_embeds = nn.Linear(image_dim, tokens * out_dim)
        self.text_proj = nn.Linear(text_dim, out_dim)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        image = self.image_embeds(image).unflatten(1, (self.tokens, -1))
        return torch.cat([image, self.text_proj(text)], dim=1)
