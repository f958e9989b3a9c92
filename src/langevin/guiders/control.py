"""Control networks: Zhang, Rao & Agrawala 2023, "Adding Conditional Control to Text-to-Image Diffusion Models"
(2302.05543).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from langevin.guiders.base import Guider, Setup
from langevin.guiders.step import Step
from langevin.media.images import VaeImageProcessor, framed, pictures

_DOWN, _MID = "down_block_additional_residuals", "mid_block_additional_residual"


@dataclass
class Control(Guider):
    """A control network looks at a picture (edges, depth, a pose, …) and tells the network what to change.

    Several may be given: what they say is summed. The picture is read once. Where the control network is not asked
    (outside ``start`` and ``stop``, at scale 0), nothing is computed.

    Args:
        network: a :class:`langevin.ControlNetModel` made for a network like the pipeline's. It is asked on its own
            device and in its own dtype.
        image: the picture: PIL, an array ``(height, width, 3)`` or a tensor ``(3, height, width)`` in [0, 1], or a
            batch or list of them: one for all, one per prompt, or one per picture that is made. It is brought to the
            size of what is made.
        scale: how much counts what the control network says; 0 is exactly not having it.
        start, stop: the share of the run in which it is asked, counted in network calls; 0 <= start < stop <= 1.
        guess: tell only the positive branch, and the coarse layers more than the fine ones (the paper's "guess mode",
            for prompts that say little; a guidance scale of 3 to 5 goes with it). None: as the control network was
            made for (its ``global_pool_conditions``).

    Raises:
        ValueError: for a network of another kind or model, and for what is outside these ranges.

    Example:
        >>> pipe("a red circle", control=[Control(outlines, picture), Control(depths, depth, scale=0.5, stop=0.6)])
    """

    pictures_only = True

    network: Any
    image: Any
    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    guess: bool | None = None

    _frame: ClassVar[tuple[Any, Any] | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if hasattr(self.network, "nets"):
            raise ValueError("Control got a MultiControlNetModel; give one Control for each of its nets")
        if not hasattr(self.network, "embed_condition"):
            raise ValueError(f"Control got a {type(self.network).__name__} as its network; give a ControlNetModel")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"control from {self.start} to {self.stop}; 0 <= start < stop <= 1 is needed")

    @property
    def guesses(self) -> bool:
        """Whether only the positive branch is told."""
        return self.network.config.global_pool_conditions if self.guess is None else self.guess

    def within(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> Control:
        part = copy.copy(self)
        part.__dict__["_frame"] = box, size
        return part

    def prepare(self, setup: Setup) -> None:
        if self.scale == 0:
            self.shown = self.pixels(setup)
            return
        self._name = f"control {len(setup.inputs)}"  # every control adds an input, so no two have one name
        self._setup = setup
        self.show(self.pixels(setup))
        setup.inputs.append(self._tell)

    def pixels(self, setup: Setup) -> Tensor:
        """The picture in the size of what is made, ``(n, channels, height, width)`` in [0, 1]."""
        setup.picture_places("Control")
        height, width = setup.size[-2:]
        if self._frame is not None:
            return framed(self.image, *self._frame, height, width)
        return control_pixels(self.image, height, width)

    def show(self, pixels: Tensor) -> None:
        """Let the control network look at this from now on, ``(n, channels, height, width)`` in [0, 1]."""
        self.shown = pixels
        hint = self.network.embed_condition(self._brought(pixels))
        shape = self._setup.shape
        if hint.shape[-2:] != shape[-2:]:
            seen, wanted = (" x ".join(map(str, size[-2:])) for size in (hint.shape, shape))
            raise ValueError(
                f"this ControlNet sees the picture as {seen}, where x is {wanted}; it is for another model"
            )
        self._setup.told.put("maps", self._name, one_per_row(hint, self._setup))

    def acts(self, step: Step) -> bool:
        """Whether the control network is asked at this step, counted from where the run begins."""
        done, calls = step.index - step.start, step.total - step.start
        return self.start <= done / calls and (done + 1) / calls <= self.stop

    def _tell(self, x: Tensor, step: Step, names: Sequence[str], told: dict[str, Any]) -> dict[str, Any]:
        """What the network is told instead of ``told``; see :attr:`langevin.guiders.base.Setup.inputs`."""
        if not self.acts(step) or (self.guesses and "positive" not in names):
            return told
        rows = slice(0, len(x))
        if self.guesses:
            each, place = len(x) // len(names), names.index("positive")
            rows = slice(place * each, (place + 1) * each)
        known = ("encoder_hidden_states", "class_labels", "added_cond_kwargs")
        seen = {"sample": x, **{name: told[name] for name in known if name in told}}
        down, mid = self.network(
            **self._brought(seen, rows),
            timestep=step.timestep,
            embedded_cond=told["maps"][self._name][rows],
            conditioning_scale=self.scale,
            guess_mode=self.guesses,
            return_dict=False,
        )
        said = [_among_zeros(m.to(x), rows.start, len(x)) for m in (*down, mid)]
        if _DOWN in told:
            said = [a + b for a, b in zip((*told[_DOWN], told[_MID]), said, strict=True)]
        return {**told, _DOWN: said[:-1], _MID: said[-1]}

    def _brought(self, value: Any, rows: slice = slice(None)) -> Any:
        """Tensors (their ``rows``), in dicts and lists too, to the control network's device and, floats, its dtype."""
        if isinstance(value, Mapping):
            return {name: self._brought(inner, rows) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._brought(inner, rows) for inner in value]
        if not isinstance(value, Tensor):
            return value
        # layers that are brought in one by one from where they rest have no device yet
        device = self.network.device if self.network.device.type != "meta" else self._setup.device
        return value[rows].to(device, self.network.dtype if value.is_floating_point() else None)


def control_pixels(image: Any, height: int | None = None, width: int | None = None, multiple: int = 1) -> Tensor:
    """Control pictures, ``(n, channels, height, width)`` in [0, 1]; without a size in their own, rounded down to
    ``multiple``.

    Raises:
        ValueError: for no picture, or of another kind.
    """
    if image is None:
        raise ValueError("image is missing; give the control picture: a PIL image, an array or a tensor in [0, 1]")
    # no number of channels marks latents here
    processor = VaeImageProcessor(
        vae_scale_factor=multiple, vae_latent_channels=0, do_convert_rgb=True, do_normalize=False
    )
    return processor.preprocess(pictures(image), height=height, width=width).float()


def one_per_row(images: Tensor, setup: Setup) -> Tensor:
    """Repeat ``(n, …)`` to x's rows: one goes to all, one per prompt to the pictures of its prompt.

    Raises:
        ValueError: n is neither, nor one per picture.
    """
    batch, count = setup.shape[0], len(images)
    if count in (1, batch):
        return images.expand(batch, *images.shape[1:])
    if count * setup.pictures != batch:
        raise ValueError(f"{count} control images for {batch // setup.pictures} prompts; give one image, or one each")
    return images.repeat_interleave(setup.pictures, dim=0)


def _among_zeros(rows: Tensor, start: int, total: int) -> Tensor:
    """``rows`` from row ``start`` on among ``total``, the others zero."""
    if len(rows) == total:
        return rows
    return F.pad(rows, (0, 0) * (rows.ndim - 1) + (start, total - start - len(rows)))
