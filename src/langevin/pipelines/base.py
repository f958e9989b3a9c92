"""The base of all pipelines: the door to checkpoints, switches for memory and speed, and what surrounds a call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langevin.checkpoints.errors import CheckpointError
from langevin.checkpoints.model_index import CALL_DEFAULTS
from langevin.pipelines.loading import Loading
from langevin.pipelines.lora import LoraMixin
from langevin.pipelines.running import Running


class DiffusionPipeline(Running, LoraMixin, Loading):
    """Base of all pipelines, and the one door to checkpoints: ``from_pretrained`` gives the class that a folder names.

    A pipeline is made of parts (networks, a scheduler, a tokenizer, …) and settings. Both are arguments of its
    constructor: parts are those without a default and those in ``_optional_components``, which may be None; the others
    are settings. :func:`langevin.pipelines.parts.takes_parts` makes the pipeline of them.

    Example:
        >>> from langevin import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("langevin/shapes")
        >>> pipe("a red circle", seed=7).images[0].save("circle.png")
    """

    #: the older callback comes after every network call, not after every step
    _callback_each_call = False

    def call_default(self, name: str, otherwise: float) -> float:
        """The number that this checkpoint names for a call's argument where it is not given, else ``otherwise``.

        Raises:
            CheckpointError: the checkpoint's entry is no number.
        """
        value = (self.config.get(CALL_DEFAULTS) or {}).get(name, otherwise)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"{self.name_or_path} has {value!r} as its default {name}; a number is needed.")
        return value

    # -- memory and speed

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Does nothing: attention here never holds the whole score matrix, so there is nothing to slice."""

    def disable_attention_slicing(self) -> None:
        """Does nothing; see :meth:`enable_attention_slicing`."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Does nothing: attention here always is memory-efficient (``scaled_dot_product_attention``)."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Does nothing; see :meth:`enable_xformers_memory_efficient_attention`."""

    def enable_vae_slicing(self) -> None:
        """Decode pictures of a batch one by one: less memory."""
        self._of_part("vae", "enable_slicing")()

    def disable_vae_slicing(self) -> None:
        """Decode whole batches."""
        self._of_part("vae", "disable_slicing")()

    def enable_vae_tiling(self) -> None:
        """Decode large pictures in overlapping tiles: less memory."""
        self._of_part("vae", "enable_tiling")()

    def disable_vae_tiling(self) -> None:
        """Decode pictures whole."""
        self._of_part("vae", "disable_tiling")()

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Scale skip connections and backbone of the UNet's last stages (FreeU, arXiv:2309.11497)."""
        self._of_part("unet", "enable_freeu")(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Undo :meth:`enable_freeu`."""
        self._of_part("unet", "disable_freeu")()

    def spread_arguments(self, given: Any) -> dict[str, bool]:
        """Names of a call's arguments that may be lists of pictures, one for each picture that is made; and whether
        they go with the prompts (a, a, b, b) or are repeated as a whole (a, b, a, b).
        """
        return {}

    def _of_part(self, part: str, method: str) -> Any:
        found = getattr(getattr(self, part, None), method, None)
        if found is None:
            raise ValueError(f"{type(self).__name__} has no {part} with {method}().")
        return found

    # -- around a call

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Options of :class:`tqdm.tqdm` for progress bars, such as ``disable=True``."""
        self._progress_bar_config = kwargs

    def progress_bar(self, iterable: Iterable | None = None, total: int | None = None) -> Any:
        """A progress bar over ``iterable``, or one of ``total`` steps to update by hand.

        Raises:
            ValueError: neither is given.
        """
        from tqdm.auto import tqdm

        if iterable is None and total is None:
            raise ValueError("progress_bar() needs an iterable or a total.")
        options = self._progress_bar_config
        return tqdm(iterable, **options) if iterable is not None else tqdm(total=total, **options)

    @staticmethod
    def numpy_to_pil(images: Any) -> list[Any]:
        """Pictures from an array ``(batch, height, width, channels)`` in [0, 1]."""
        from langevin.media.images import numpy_to_pil

        return numpy_to_pil(images)
