"""A picture changed with the noise that makes it: CycleDiffusion, Wu & De la Torre 2022 (2210.05559)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from langevin.guiders.base import Setup
from langevin.guiders.classifier_free import ClassifierFreeGuidance
from langevin.guiders.image_start import ImageStart
from langevin.guiders.step import Step, add_branch

if TYPE_CHECKING:
    from langevin.schedulers.noise import Level


@dataclass
class CycleNoise(ImageStart):
    """Begin at a picture as :class:`langevin.ImageStart` does, and let DDIM add the noise that would lead back to it.

    Beside x goes the source, the picture on its way from noise: at each step it is drawn from the posterior, given what
    it is and what it ends at (algorithm 1 of the paper, DPM-Encoder). The noise that the solver would have to add to
    get there from what the network says of the source prompt is then what is added to x. Where both prompts agree, so
    do the pictures. Each step asks the network twice.

    Args:
        image: see :class:`langevin.ImageStart`.
        strength: the share of the run that is kept, 0 to 1.
        source_prompt: what the picture shows; a text, or one for each prompt.
        source_guidance_scale: how strictly the source follows it; 1 is off. It is off wherever there is no
            classifier-free guidance for the other prompt.
        as_noise: take what the network says of the source for noise, whatever its scheduler's ``prediction_type`` is,
            as the reference does: with networks that predict v the noise that is found is then not the one that leads
            back.

    Raises:
        ValueError: when the call begins: the scheduler is not DDIM with ``eta`` above 0, since nothing else adds a
            noise that can be found.

    Example:
        >>> guiders = [CycleNoise(pixels, 0.8, "a red circle")]
        >>> pipe("a blue circle", guiders=guiders, eta=0.1)
    """

    source_prompt: str | Sequence[str] = ""
    source_guidance_scale: float = 1.0
    as_noise: bool = False

    def prepare(self, setup: Setup) -> None:
        if not getattr(setup.run, "eta", 0.0) > 0 or setup.run.noise_added(0) is None:
            name, eta = type(setup.scheduler).__name__, getattr(setup.run, "eta", 0.0)
            raise ValueError(f"CycleNoise needs a DDIMScheduler with eta above 0; here is a {name} with eta {eta:g}")
        if setup.encode_text is None:
            raise ValueError("CycleNoise needs a pipeline that reads texts, to tell it what the source is")
        super().prepare(setup)
        self._guidance = next((g for g in setup.guiders if isinstance(g, ClassifierFreeGuidance)), None)
        self._branch = add_branch(setup.branches, "source", setup.encode_text(self.source_prompt))
        exact = torch.promote_types(setup.dtype, torch.float32)
        self._source, self._clean = setup.x.to(exact), self.clean.to(exact)  # type: ignore[union-attr]

    def before(self, x: Tensor, step: Step) -> Tensor:
        run, i, source = step.run, step.index, self._source
        said = self._predicted(x, step)
        following = self._posterior(step)
        size = run.noise_added(i) or 0.0
        if self.as_noise:
            alpha, sigma = run.levels[i]
            x0 = (source - sigma * said) / alpha
            x0 = x0 if run.limit is None else run.limit(x0)
            mean = run.targets[i].alpha * x0 + _direction(run.targets[i], size) * said
        else:
            mean = run.step(said, i, source, torch.zeros_like).prev_sample
        noise = (following - mean) / size if size else torch.zeros_like(mean)
        step.noise = lambda like: noise.to(like.dtype)
        self._source = following
        return x

    def _predicted(self, x: Tensor, step: Step) -> Tensor:
        """What the network says of the source."""
        guided = self._guidance is not None and bool(self._guidance.needs(step)) and "negative" in step.branches
        names = ["negative", self._branch] if guided and self.source_guidance_scale != 1 else [self._branch]
        said = {name: one.to(self._source.dtype) for name, one in step.predict(self._source.to(x.dtype), names).items()}
        prediction = said[self._branch]
        return said["negative"].lerp(prediction, self.source_guidance_scale) if "negative" in said else prediction

    def _posterior(self, step: Step) -> Tensor:
        """The source at the next level, given where it is and where it ends: q(x_{t-1} | x_t, x_0) of DDIM (Song et al.
        2020, 2010.02502, equation 7).
        """
        run, i = step.run, step.index
        if i + 1 == len(run) or run.timesteps[i + 1] <= 0:  # the least noise of training passes for none
            return self._clean
        (alpha, sigma), target, size = run.levels[i], run.targets[i], run.noise_added(i) or 0.0
        epsilon = (self._source - alpha * self._clean) / sigma
        return target.alpha * self._clean + _direction(target, size) * epsilon + size * step.noise(self._clean)


def _direction(target: Level, size: float) -> float:
    """How much of ε DDIM's step to a level puts into x, where it adds so much fresh noise."""
    return max(target.sigma**2 - size**2, 0.0) ** 0.5
