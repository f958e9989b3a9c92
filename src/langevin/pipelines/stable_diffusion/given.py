"""The arguments of the Stable Diffusion family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from torch import Tensor

from langevin.checks import Count, Range, Share
from langevin.guiders.base import Guider
from langevin.pipelines.given import Given

CALLBACKS = "callback_on_step_end callback_on_step_end_tensor_inputs"


def middle(after_scale: str = "", without: str = "") -> str:
    """The arguments that most calls of the reference have one after the other, from ``guidance_scale`` on.

    Args:
        after_scale: a pipeline's own, behind ``guidance_scale``.
        without: names that a pipeline lacks there.
    """
    names = (
        f"guidance_scale {after_scale} negative_prompt num_images_per_prompt eta generator latents prompt_embeds "
        "negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds output_type return_dict"
    )
    return " ".join(name for name in names.split() if name not in without.split())


Side = Annotated[int, Range(1, 2**16)]


@dataclass(frozen=True, kw_only=True)
class FamilyGiven(Given):
    """What every pipeline of the family takes, whatever its network is told.

    Args:
        height, width: pixels, multiples of ``vae_scale_factor``; the model's own size if None.
        num_inference_steps: more steps, finer pictures.
        timesteps, sigmas: visit these timesteps instead, descending; or these noise levels, descending, and the one to
            end at (usually 0).
        guidance_scale: how strictly to follow what the network is told; 1 is off. None: what the checkpoint names, else
            7.5.
        num_images_per_prompt: pictures of each prompt.
        eta: share of fresh noise in each step, for schedulers that know it (DDIM: 0 to 1).
        latents: start from this instead of noise, ``(pictures, channels, height / factor, width / factor)``.
        output_type: "pil", "np" ``(batch, height, width, channels)`` or "pt" ``(batch, channels, height, width)``, both
            in [0, 1], or "latent", the latents as they are.
        cross_attention_kwargs: handed to the network.
        guidance_rescale: φ of Lin et al. 2023; 0 is off.
        control: control networks with their pictures, ``[Control(net, picture, scale=0.8)]``; see
            :class:`langevin.Control`.
        pair_images: where several pictures are given for as many prompts, and ``num_images_per_prompt`` is above 1:
            True gives each prompt its own picture; False repeats the list as a whole, as the reference does.
        safety_action: what to do with pictures that the safety checker flags: black them out, or only say so.
    """

    height: Side | None = None
    width: Side | None = None
    num_inference_steps: Count = 50
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    guidance_scale: float | None = None
    num_images_per_prompt: Count = 1
    eta: Share = 0.0
    latents: Tensor | None = None
    output_type: Literal["pil", "np", "pt", "latent"] = "pil"  # type: ignore[assignment]
    cross_attention_kwargs: dict[str, Any] | None = None
    guidance_rescale: Share = 0.0
    control: Sequence[Guider] = ()
    pair_images: bool = False
    safety_action: Literal["blackout", "flag"] = "blackout"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_lists("control")

    @property
    def own_schedule(self) -> bool:
        """Whether the caller names the levels to visit."""
        return self.timesteps is not None or self.sigmas is not None


@dataclass(frozen=True, kw_only=True)
class TextGiven(FamilyGiven):
    """What every pipeline takes whose network is told texts.

    Args:
        prompt: a text, or one per picture; or give ``prompt_embeds``. A text may change during the run, as in
            ``a [red:blue:0.4] cat``; see :mod:`langevin.prompts.editing`.
        guidance_scale: how strictly to follow the prompt; 1 is off. None: what the checkpoint names, else 7.5.
        negative_prompt: what to move away from; a text, or one per prompt.
        prompt_embeds, negative_prompt_embeds: embeddings in the texts' place, ``(prompts, tokens, dim)``.
        ip_adapter_image, ip_adapter_image_embeds: not there yet; None is taken.
        clip_skip: how many of the text encoder's last layers to leave out.
        clip_skip_negative: apply ``clip_skip`` to the negative prompt too.
        prompt_weighting: how prompts are read. "compel": ``a (red cat)1.3 with a hat--``, see
            :mod:`langevin.prompts.compel`. "a1111", "comfyui": ``a (red cat:1.3) with a [hat]`` and the numbers of
            these web UIs. "none": every character is text.
        long_prompts: "chunk" reads a prompt longer than the text encoder's window (77 tokens) in several windows;
            prompt and negative prompt get the same number. "cut" reads the first one only, as the reference does, and
            names the words lost in a warning.
    """

    prompt: str | Sequence[str] | None = field(default=None, kw_only=False)
    negative_prompt: str | Sequence[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    ip_adapter_image: Any = None
    ip_adapter_image_embeds: Any = None
    clip_skip: Annotated[int, Range(0)] | None = None
    clip_skip_negative: bool = False
    prompt_weighting: str = "compel"
    long_prompts: Literal["chunk", "cut"] = "chunk"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ip_adapter_image", "ip_adapter_image_embeds"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} was given, and IP-Adapters are not there yet; leave it out")
        self._check_told()

    def _check_told(self) -> None:
        """Raises ValueError unless there is something to tell the network."""
        for name in ("prompt", "negative_prompt"):
            check_texts(name, getattr(self, name))
        if (self.prompt is None) == (self.prompt_embeds is None):
            given = "neither" if self.prompt is None else "both"
            raise ValueError(f"{given} of prompt and prompt_embeds given; give exactly one")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise ValueError("both negative_prompt and negative_prompt_embeds given; give at most one")


def check_texts(name: str, value: Any) -> None:
    """Raises ValueError unless it is None, a text, or a list of texts, none missing."""
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, (list, tuple)) or not all(t is None or isinstance(t, str) for t in value):
        raise ValueError(f"{name} is a {type(value).__name__}; a text or a list of texts is needed")
    if not value or None in value:
        raise ValueError(f"{name} is an empty list or has an empty place; give one text per picture")
