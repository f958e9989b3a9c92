"""What a network is told beside the picture, as one vector per picture and as tokens to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from langevin.models.layers import embeddings
from langevin.models.layers.activation import activation

CLASS_EMBEDDINGS = ("timestep", "identity", "projection", "simple_projection")
ADDITIONS = ("text", "text_image", "text_time", "image", "image_hint")
CONTEXT_PROJECTIONS = ("text_proj", "text_image_proj", "image_proj")


class Conditioning(nn.Module):
    """Gives a network its time, class and additional embeddings and the projection of what it looks at.

    They are built from the network's config and are modules of the network itself, under the names that checkpoints
    have for them. A config may leave out what it does not use.
    """

    config: Any

    def _add_conditioning(self, context_dim: int) -> int:
        """Build the modules; returns the width of the vector that :meth:`_vector` gives."""
        c: Mapping[str, Any] = self.config
        kind, first = c.get("time_embedding_type", "positional"), c["block_out_channels"][0]
        cos_first, freq_shift = c["flip_sin_to_cos"], c["freq_shift"]
        if kind == "positional":
            dim, t_dim = c.get("time_embedding_dim") or first * 4, first
            self.time_proj: nn.Module = embeddings.Timesteps(t_dim, cos_first, freq_shift)
        elif kind == "fourier":
            dim = t_dim = c.get("time_embedding_dim") or first * 2
            if dim % 2:
                raise ValueError(f"time_embedding_dim={dim} is odd; 'fourier' needs as many sines as cosines")
            self.time_proj = embeddings.FourierFeatures(dim // 2, cos_first=cos_first)
        else:
            raise ValueError(f"time_embedding_type={kind!r} is unknown; use 'positional' or 'fourier'")
        self.time_embedding = embeddings.TimestepEmbedding(
            t_dim,
            dim,
            act=c["act_fn"],
            post_act=c.get("timestep_post_act"),
            condition_dim=c.get("time_cond_proj_dim"),
        )
        last_act = c.get("time_embedding_act_fn")
        self.time_embed_act = None if last_act is None else activation(last_act)
        self.class_embedding: Any = self._class_embedding(t_dim, dim)
        self.encoder_hid_proj: Any = self._context_projection(context_dim)
        self.add_embedding: Any = self._addition(context_dim, dim)
        return 2 * dim if c.get("class_embeddings_concat") else dim

    def _width(self, setting: str, value: str) -> int:
        """The width that a config must give with ``setting=value``."""
        need = {
            "class_embed_type": "projection_class_embeddings_input_dim",
            "encoder_hid_dim_type": "encoder_hid_dim",
            "addition_embed_type": "encoder_hid_dim" if "image" in value else "projection_class_embeddings_input_dim",
        }[setting]
        width = self.config.get(need)
        if width is None:
            raise ValueError(f"{setting}={value!r} needs {need}, the width of what it projects")
        return width

    def _class_embedding(self, t_dim: int, dim: int) -> nn.Module | None:
        kind, classes = self.config.get("class_embed_type"), self.config.get("num_class_embeds")
        if kind is None:
            return None if classes is None else nn.Embedding(classes, dim)
        if kind == "timestep":
            return embeddings.TimestepEmbedding(t_dim, dim, act=self.config["act_fn"])
        if kind == "identity":
            return nn.Identity()
        if kind == "projection":
            return embeddings.TimestepEmbedding(self._width("class_embed_type", kind), dim)
        if kind == "simple_projection":
            return nn.Linear(self._width("class_embed_type", kind), dim)
        raise ValueError(f"class_embed_type={kind!r} is unknown; use one of: None, {', '.join(CLASS_EMBEDDINGS)}")

    def _context_projection(self, context_dim: int) -> nn.Module | None:
        kind = self.config.get("encoder_hid_dim_type")
        if kind is None and self.config.get("encoder_hid_dim") is None:
            return None
        if kind is None or kind == "text_proj":
            return nn.Linear(self._width("encoder_hid_dim_type", "text_proj"), context_dim)
        if kind == "text_image_proj":
            return embeddings.TextImageProjection(self._width("encoder_hid_dim_type", kind), context_dim, context_dim)
        if kind == "image_proj":
            return embeddings.ImageProjection(self._width("encoder_hid_dim_type", kind), context_dim)
        names = ", ".join(CONTEXT_PROJECTIONS)
        raise ValueError(f"encoder_hid_dim_type={kind!r} is unknown; use one of: None, {names}")

    def _addition(self, context_dim: int, dim: int) -> nn.Module | None:
        c = self.config
        kind = c.get("addition_embed_type")
        if kind is None:
            return None
        if kind == "text":
            heads = c.get("addition_embed_type_num_heads", 64)
            return embeddings.TextTimeEmbedding(c.get("encoder_hid_dim") or context_dim, dim, heads)
        if kind == "text_time":
            return embeddings.TimestepEmbedding(self._width("addition_embed_type", kind), dim)
        if kind == "text_image":
            return embeddings.TextImageTimeEmbedding(context_dim, context_dim, dim)
        if kind == "image":
            return embeddings.ImageTimeEmbedding(self._width("addition_embed_type", kind), dim)
        if kind == "image_hint":
            return embeddings.ImageHintTimeEmbedding(self._width("addition_embed_type", kind), dim)
        raise ValueError(f"addition_embed_type={kind!r} is unknown; use one of: None, {', '.join(ADDITIONS)}")

    def _vector(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        timestep_cond: Tensor | None = None,
        class_labels: Tensor | None = None,
        added: Mapping[str, Tensor] | None = None,
        text: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The time and all that is added to it, (batch, width); and the map of a hint, where there is one."""
        c, dtype = self.config, sample.dtype
        emb = self.time_embedding(self.time_proj(embeddings.per_sample(timestep, sample)).to(dtype), timestep_cond)

        if self.class_embedding is not None:
            labels = check_labels(class_labels, sample)
            if c.get("class_embed_type") == "timestep":
                labels = self.time_proj(labels).to(dtype)
            told = self.class_embedding(labels).to(dtype)
            emb = torch.cat([emb, told], dim=-1) if c.get("class_embeddings_concat") else emb + told

        emb, hint = self._add_to(emb, added, text)
        return emb if self.time_embed_act is None else self.time_embed_act(emb), hint

    def _add_to(
        self, emb: Tensor, added: Mapping[str, Tensor] | None, text: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The vector with what ``addition_embed_type`` adds to it, and the map of a hint, where there is one."""
        c, dtype, hint = self.config, emb.dtype, None
        kind = c.get("addition_embed_type")
        if kind == "text":
            emb = emb + self.add_embedding(text)
        elif kind == "text_time":
            vector, numbers = wanted(added, kind, "text_embeds", "time_ids")
            dim, cos_first, freq_shift = c["addition_time_embed_dim"], c["flip_sin_to_cos"], c["freq_shift"]
            times = embeddings.sinusoid(numbers.flatten(), dim, cos_first=cos_first, freq_shift=freq_shift)
            emb = emb + self.add_embedding(torch.cat([vector, times.reshape(len(vector), -1)], dim=-1).to(dtype))
        elif kind == "text_image":
            (image,) = wanted(added, kind, "image_embeds")
            emb = emb + self.add_embedding((added or {}).get("text_embeds", text), image)
        elif kind == "image":
            emb = emb + self.add_embedding(*wanted(added, kind, "image_embeds"))
        elif kind == "image_hint":
            told, hint = self.add_embedding(*wanted(added, kind, "image_embeds", "hint"))
            emb = emb + told
        return emb, hint

    def _tokens(self, text: Tensor | None, added: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """What the layers look at, (batch, tokens, cross_attention_dim)."""
        if self.encoder_hid_proj is None:
            return text
        kind = self.config.get("encoder_hid_dim_type")
        if kind == "image_proj":
            return self.encoder_hid_proj(*wanted(added, kind, "image_embeds"))
        if kind == "text_image_proj":
            return self.encoder_hid_proj(text, *wanted(added, kind, "image_embeds"))
        return self.encoder_hid_proj(text)

    def _check_text(self, text: Tensor | None, sample: Tensor) -> None:
        """Raise one line if ``text`` is not what this network can look at."""
        c = self.config
        if c.get("encoder_hid_dim_type") == "image_proj":
            return
        width = c.get("encoder_hid_dim") or c["cross_attention_dim"]
        width = width if isinstance(width, int) else width[0]
        if text is None or text.ndim != 3 or text.shape[0] != sample.shape[0] or text.shape[2] != width:
            given = "None" if text is None else f"of shape {tuple(text.shape)}"
            raise ValueError(
                f"encoder_hidden_states is {given}; the network takes ({sample.shape[0]}, tokens, {width}) here"
            )


def wanted(added: Mapping[str, Tensor] | None, kind: str, *names: str) -> list[Tensor]:
    """The entries ``names`` of ``added_cond_kwargs``, or one line about which are missing."""
    given = added or {}
    missing = [name for name in names if name not in given]
    if missing:
        there = ", ".join(given) or "nothing"
        raise ValueError(f"{kind!r} needs added_cond_kwargs with {', '.join(missing)}; it was given {there}")
    return [given[name] for name in names]


def attention_bias(mask: Tensor | None, like: Tensor, name: str) -> Tensor | None:
    """A mask of ones and zeros (batch, keys) as what is added to attention scores: (batch, 1, 1, keys)."""
    if mask is None:
        return None
    if mask.ndim != 2 or mask.shape[0] != like.shape[0]:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)} for a batch of {like.shape[0]}; give (batch, keys) of ones and zeros"
        )
    return ((1 - mask.to(like.dtype)) * -10000.0)[:, None, None]


def check_sample(sample: Tensor, channels: int, multiple: int = 1, axes: tuple[str, ...] = ("height", "width")) -> None:
    """Raise one line if ``sample`` is not (batch, channels, *axes), with sides (of two) multiples of ``multiple``."""
    if sample.ndim != 2 + len(axes) or sample.shape[1] != channels:
        raise ValueError(
            f"sample has shape {tuple(sample.shape)}; this network takes (batch, {channels}, {', '.join(axes)})"
        )
    if multiple > 1 and (sample.shape[-2] % multiple or sample.shape[-1] % multiple):
        raise ValueError(
            f"sample is {sample.shape[-2]} high and {sample.shape[-1]} wide; this network takes multiples of {multiple}"
        )


def check_labels(labels: Tensor | None, sample: Tensor) -> Tensor:
    """``labels``, or one line if there is not one for each picture."""
    if labels is None:
        raise ValueError("this network is told a class: give class_labels, one per picture")
    if labels.shape[:1] != sample.shape[:1]:
        raise ValueError(
            f"class_labels has shape {tuple(labels.shape)} for a batch of {sample.shape[0]}; give one per picture"
        )
    return labels
