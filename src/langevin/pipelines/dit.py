"""Pictures of a class with a transformer over patches: DiT, Peebles & Xie 2023 (2212.09748)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch

from langevin.checks import Count, Range
from langevin.codecs.vae import VaeCodec
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call, compose_guiders
from langevin.pipelines.given import Given, takes
from langevin.pipelines.parts import takes_parts

Label = Annotated[int, Range(0)]
"""The number of a class."""


@dataclass(frozen=True, kw_only=True)
class DiTGiven(Given):
    """Arguments of :class:`DiTPipeline`.

    Args:
        class_labels: numbers of classes, one for each picture; :meth:`DiTPipeline.get_label_ids` has them by name.
        guidance_scale: how strictly to follow the class; 1 is off.
        num_inference_steps: more steps, finer pictures.
    """

    class_labels: Label | Sequence[Label] = field(default=(), kw_only=False)
    guidance_scale: float = field(default=4.0, kw_only=False)
    num_inference_steps: Count = 50

    positional = "class_labels guidance_scale generator num_inference_steps output_type return_dict"

    @property
    def labels(self) -> list[int]:
        """One for each picture."""
        return [self.class_labels] if isinstance(self.class_labels, int) else list(self.class_labels)


class DiTPipeline(DiffusionPipeline):
    """Pictures of a class with a transformer over patches of latents (DiT: Peebles & Xie 2023, 2212.09748).

    Schedulers that know a learned variance (``variance_type="learned_range"``) get it. Every number that is drawn comes
    from the call's generators, the solver's too, and x begins at the scheduler's own level; the reference has neither.

    Example:
        >>> from langevin import DiTPipeline
        >>> pipe = DiTPipeline.from_pretrained("facebook/DiT-XL-2-256")
        >>> images = pipe(pipe.get_label_ids(["white shark", "umbrella"]), num_inference_steps=25, seed=7).images
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ["latents"]

    @takes_parts
    def __init__(self, transformer: Any, vae: Any, scheduler: Any, id2label: Mapping[str, str] | None = None) -> None:
        """``id2label``: names of each class, by its number, with commas between them."""
        names = [(name.strip(), int(number)) for number, all_ in (id2label or {}).items() for name in all_.split(",")]
        self.labels = dict(sorted(names))

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Numbers of classes by their names.

        Raises:
            ValueError: there is no class of such a name.
        """
        listed = [label] if isinstance(label, str) else list(label)
        for one in listed:
            if one not in self.labels:
                near = difflib.get_close_matches(str(one), self.labels, cutoff=0.5)
                hint = f"nearest: {', '.join(near)}" if near else f"the {len(self.labels)} names are in .labels"
                raise ValueError(f"there is no class {one!r}; {hint}")
        return [self.labels[one] for one in listed]

    @takes(DiTGiven)
    def __call__(self, given: DiTGiven) -> Any:
        """Make pictures.

        Raises:
            ValueError: there is no label, or one that the network does not know.
        """
        config, codec, labels = self.transformer.config, VaeCodec(self.vae), given.labels
        if not labels or max(labels) > config.num_embeds_ada_norm:
            raise ValueError(f"class_labels are {labels}; whole numbers from 0 to {config.num_embeds_ada_norm - 1}")
        told = torch.tensor(labels, device=self._execution_device)
        nothing = torch.full_like(told, config.num_embeds_ada_norm)
        side = config.sample_size * codec.scale_factor
        call = Call(self, given, len(labels))
        stage = call.stage(
            self.transformer,
            self.scheduler,
            codec.shape(len(labels), (side, side)),
            {"positive": {"class_labels": told}, "negative": {"class_labels": nothing}},
            compose_guiders(given.guidance_scale, 0.0, given.guiders),
            steps=given.num_inference_steps,
            codec=codec,
        )
        return ImagePipelineOutput(call.deliver(call.decode(stage, call.denoise(stage))))
