"""What networks, schedulers and pipelines return: a dataclass that is a mapping too, and known to torch's pytree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree

Self = TypeVar("Self", bound="BaseOutput")


class BaseOutput(Mapping):
    """Base of output dataclasses: ``out.images``, ``out["images"]`` and ``out[0]`` are the same thing.

    As in every mapping, iterating gives the names, ``**out`` and ``dict(out)`` the fields by name; :meth:`to_tuple`
    gives the values alone. Fields that are None do not count: they have no key, no index, and are left out of
    :meth:`to_tuple`. ``torch.utils._pytree.tree_map``, ``torch.compile``, ``torch.export`` and DistributedDataParallel
    see the tensors inside.

    Decorate subclasses with ``@dataclass`` (``eq=False`` is not needed: outputs compare by identity).

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Answer(BaseOutput):
        ...     images: list
        ...     scores: list | None = None
        >>> Answer(["picture"])[0] == Answer(["picture"])["images"] == ["picture"]
        True
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # tensors have no single truth value, so outputs that hold them must not be compared field by field
        cls.__eq__ = object.__eq__  # type: ignore[method-assign]
        cls.__hash__ = object.__hash__  # type: ignore[method-assign]
        pytree.register_pytree_node(
            cls,
            lambda out: (list(out.to_tuple()), out.keys()),
            lambda values, names: cls._with(dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            flatten_with_keys_fn=lambda out: ([(pytree.MappingKey(k), out[k]) for k in out.keys()], out.keys()),  # noqa: SIM118
        )

    def __post_init__(self) -> None:
        # Code that maps over mappings (accelerate's casts, for one) rebuilds them as type(out)({key: value, …}).
        first, *rest = names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        given = getattr(self, first)
        if type(given) is dict and given.keys() <= {*names} and all(getattr(self, name) is None for name in rest):
            for name in names:
                setattr(self, name, given.get(name))

    @classmethod
    def _with(cls: type[Self], values: dict[str, Any]) -> Self:
        """An output with these fields, the others None."""
        made = cls.__new__(cls)
        for field in fields(cls):  # type: ignore[arg-type]
            setattr(made, field.name, values.get(field.name))
        return made

    def keys(self) -> list[str]:  # type: ignore[override]
        """Names of the fields that are not None, in their order."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are not None."""
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{type(self).__name__} has no {key!r}; it has: {', '.join(self.keys())}")
        return getattr(self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


# -- of networks


@dataclass
class UNet1DOutput(BaseOutput):
    """``sample`` (batch, out_channels, length): what the network predicts; of a value function (batch, 1)."""

    sample: Tensor


@dataclass
class UNet2DOutput(BaseOutput):
    """``sample`` (batch, out_channels, height, width): what the network predicts."""

    sample: Tensor


@dataclass
class UNet2DConditionOutput(BaseOutput):
    """``sample`` (batch, out_channels, height, width): what the network predicts."""

    sample: Tensor


@dataclass
class Transformer2DModelOutput(BaseOutput):
    """``sample``: a map like the one given, ``(batch, channels, height, width)``, or log p of codes, ``(batch, codes,
    places)``.
    """

    sample: Tensor


@dataclass
class UNet3DConditionOutput(BaseOutput):
    """``sample`` (batch, out_channels, frames, height, width): what the network predicts."""

    sample: Tensor


@dataclass
class PriorTransformerOutput(BaseOutput):
    """``predicted_image_embedding`` (batch, clip_embed_dim): of the picture that is sought; without ``prd`` token
    (batch, 1, clip_embed_dim).
    """

    predicted_image_embedding: Tensor


@dataclass
class DecoderOutput(BaseOutput):
    """``sample`` (batch, channels, height, width), pictures in about [-1, 1]; of an autoencoder with a codebook also
    ``commit_loss``, what training adds for quantising.
    """

    sample: Tensor
    commit_loss: Tensor | None = None


@dataclass
class VQEncoderOutput(BaseOutput):
    """``latents`` (batch, channels, height, width), not yet quantised."""

    latents: Tensor


@dataclass
class AutoencoderKLOutput(BaseOutput):
    """``latent_dist``: a :class:`~langevin.models.distributions.DiagonalGaussianDistribution` over latents."""

    latent_dist: Any


@dataclass
class ControlNetOutput(BaseOutput):
    """What is added to the UNet's maps.

    ``down_block_res_samples``: one (batch, channels, h, w) for each map that the UNet hands over to its way up, in that
    order; ``mid_block_res_sample``: for the map after the middle. With ``global_pool_conditions`` h = w = 1.
    """

    down_block_res_samples: Sequence[Tensor]
    mid_block_res_sample: Tensor


# -- of pipelines


@dataclass
class ImagePipelineOutput(BaseOutput):
    """Pictures.

    Attributes:
        images: a list of PIL pictures; for ``output_type="np"`` an array ``(batch, height, width, channels)``, for
            ``"pt"`` a tensor ``(batch, channels, height, width)``, both in [0, 1].
    """

    images: Any


@dataclass
class AudioPipelineOutput(BaseOutput):
    """Sounds.

    Attributes:
        audios: ``(batch, channels, samples)`` in [-1, 1], an array or a tensor.
        sounds: the same, one :class:`~langevin.media.sound.Sound` each, which knows its rate and its settings and saves
            itself as WAV.
    """

    audios: Any
    sounds: Any = None

    in_tuples = ("audios",)


@dataclass
class AudioDiffusionPipelineOutput(BaseOutput):
    """Sounds, and their pictures.

    Attributes:
        audios: ``(batch, 1, samples)`` of float32, an array.
        images: the pictures of their spectra, in the form asked for.
        sounds: the same as ``audios``, one :class:`~langevin.media.sound.Sound` each.
    """

    audios: Any
    images: Any
    sounds: Any = None

    in_tuples = ("images", "rate_and_audios")

    @property
    def rate_and_audios(self) -> tuple[int, list[Any]]:
        """Samples in a second, and ``(samples,)`` of each sound."""
        return self.sounds[0].sample_rate, [audio[0] for audio in self.audios]


@dataclass
class StableDiffusionPipelineOutput(BaseOutput):
    """Pictures, and which of them the safety checker flagged (None without a checker)."""

    images: Any
    nsfw_content_detected: list[bool] | None


@dataclass
class IFPipelineOutput(BaseOutput):
    """Pictures of DeepFloyd IF.

    Attributes:
        images: a list of PIL pictures; for ``output_type="np"`` an array ``(batch, height, width, 3)`` in [0, 1];
            for ``"pt"`` a tensor ``(batch, 3, height, width)`` in about [-1, 1], which the next stage takes.
        nsfw_detected, watermark_detected: which of them the safety checker found not safe for work, and which marked by
            somebody; None without a checker.
    """

    images: Any
    nsfw_detected: list[bool] | None
    watermark_detected: list[bool] | None


@dataclass
class IFCascadeOutput(IFPipelineOutput):
    """Pictures of a cascade: ``images`` are those of the last stage, and the flags are theirs.

    Attributes:
        sizes: the pictures of each stage that was gone through, the smallest first; the last are ``images``.
    """

    sizes: list[Any]


@dataclass
class AltDiffusionPipelineOutput(StableDiffusionPipelineOutput):
    """Pictures, and which of them the safety checker flagged (None without a checker)."""


@dataclass
class TextToVideoSDPipelineOutput(BaseOutput):
    """Videos.

    Attributes:
        frames: a list of :class:`langevin.Video` ("pil"), an array ``(batch, frames, height, width, channels)`` ("np"),
            a tensor ``(batch, frames, channels, height, width)`` ("pt"), both in [0, 1], or latents ``(batch, channels,
            frames, h, w)`` ("latent").
    """

    frames: Any


@dataclass
class DiffEditInversionPipelineOutput(BaseOutput):
    """What an inversion passed through.

    Attributes:
        latents: ``(prompts, steps, channels, height, width)``, the noisiest first.
        images: the same decoded, one after the other, in the form asked for; None where it was not asked for.
    """

    latents: Tensor
    images: Any


@dataclass
class StableDiffusionSafePipelineOutput(BaseOutput):
    """Pictures.

    Attributes:
        images: the pictures; those that the safety checker flagged are black.
        nsfw_content_detected: which those are; None without a checker.
        unsafe_images: the flagged pictures as they were, and black ones in the places of the others; None where
            nothing was flagged.
        applied_safety_concept: what was steered away from; None where safe guidance was off.
    """

    images: Any
    nsfw_content_detected: list[bool] | None
    unsafe_images: Any
    applied_safety_concept: str | list[str] | None

    in_tuples = ("images", "nsfw_content_detected", "applied_safety_concept", "unsafe_images")


@dataclass
class SemanticStableDiffusionPipelineOutput(BaseOutput):
    """Pictures.

    Attributes:
        images: the pictures; those that the safety checker flagged are black.
        nsfw_content_detected: which those are; None without a checker.
        sem_guidance: what the edits added at each network call, a tensor like the latents, or None where they added
            nothing; may be given to another call.
        edit_masks: where each edit wanted a change, ``(edits, batch, channels, height, width)`` of bools for each call.
    """

    images: Any
    nsfw_content_detected: list[bool] | None
    sem_guidance: list[Tensor | None] | None = None
    edit_masks: list[Tensor | None] | None = None

    in_tuples = ("images", "nsfw_content_detected")


@dataclass
class Pix2PixInversionPipelineOutput(BaseOutput):
    """The noise that pictures would be made of.

    Attributes:
        latents: the noise, ``(batch, channels, height, width)``; to be given to a call as ``latents``.
        images: the same, decoded, in the form asked for.
    """

    latents: Tensor
    images: Any
