"""Unconditional pictures in pixel space: DDPM (2006.11239), DDIM (2010.02502), PNDM (2202.09778), score SDEs
(2011.13456) and the sampler of Karras et al. (2206.00364).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from langevin.checks import Count, Share
from langevin.codecs.base import Codec
from langevin.codecs.pixels import PixelCodec
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call
from langevin.pipelines.given import Given, takes
from langevin.pipelines.parts import takes_parts


@dataclass(frozen=True, kw_only=True)
class UnconditionalGiven(Given):
    """Arguments of unconditional pipelines.

    Args:
        batch_size: how many pictures to make.
        num_inference_steps: more steps, finer pictures.
    """

    batch_size: Count = field(default=1, kw_only=False)
    num_inference_steps: Count = 1000

    positional = "batch_size generator num_inference_steps output_type return_dict"


@dataclass(frozen=True, kw_only=True)
class DDIMGiven(UnconditionalGiven):
    """Arguments of :class:`DDIMPipeline`.

    Args:
        eta: 0 is deterministic, 1 has the noise of DDPM (η of the paper's equation 16).
        use_clipped_model_output: recompute the noise from the clipped picture, as GLIDE does.
    """

    eta: Share = 0.0
    num_inference_steps: Count = 50
    use_clipped_model_output: bool | None = None

    positional = "batch_size generator eta num_inference_steps use_clipped_model_output output_type return_dict"


class UnconditionalPipeline(DiffusionPipeline):
    """Noise to pictures with a UNet2DModel; the base of the pipelines named for their schedulers."""

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    @takes_parts
    def __init__(self, unet: Any, scheduler: Any) -> None:
        pass

    _low = -1.0  # what black is to the network

    def network(self) -> Callable[..., Any]:
        """What denoises: the UNet, or a function around it."""
        return self.unet

    @property
    def codec(self) -> Codec:
        """From pictures to what the network denoises, and back."""
        return PixelCodec(self.unet.config.in_channels, self._low)

    def generate(
        self, given: Any, batch: int | None = None, size: Sequence[int] | None = None, **options: Any
    ) -> ImagePipelineOutput:
        """Make pictures: ``batch`` of them, of height and width ``size``, where they are not as given and as the
        network's own; ``options`` are of the scheduler's run, where it takes them.
        """
        own = self.unet.config.sample_size
        if own is None and size is None:
            raise ValueError("the UNet's config does not say its sample_size, and so not how large its pictures are")
        batch, size = batch or given.batch_size, size or ((own, own) if isinstance(own, int) else own)
        call = Call(self, given, batch)
        setup = call.stage(
            self.network(),
            self.scheduler,
            (batch, self.unet.config.in_channels, *size),
            guiders=given.guiders,
            steps=given.num_inference_steps,
            options=options,
            codec=self.codec,
            dtype=self.unet.dtype,
        )
        return ImagePipelineOutput(call.deliver(call.decode(setup, call.denoise(setup)), batch_size=None))


class DDPMPipeline(UnconditionalPipeline):
    """Unconditional pictures by ancestral sampling.

    Example:
        >>> from langevin import DDPMPipeline
        >>> pipe = DDPMPipeline.from_pretrained("langevin/shapes-unconditional")
        >>> images = pipe(batch_size=4, num_inference_steps=100, seed=7).images
    """

    @takes(UnconditionalGiven)
    def __call__(self, given: UnconditionalGiven) -> Any:
        """Make ``batch_size`` pictures."""
        return self.generate(given)


class DDIMPipeline(UnconditionalPipeline):
    """Unconditional pictures by DDIM; any scheduler it is given is turned into one.

    Example:
        >>> from langevin import DDIMPipeline
        >>> pipe = DDIMPipeline.from_pretrained("langevin/shapes-unconditional")
        >>> images = pipe(batch_size=4, num_inference_steps=50, seed=7).images
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        from langevin.schedulers.timesteps.ddim import DDIMScheduler

        super().__init__(unet, DDIMScheduler.from_config(scheduler.config))

    @takes(DDIMGiven)
    def __call__(self, given: DDIMGiven) -> Any:
        """Make ``batch_size`` pictures."""
        return self.generate(given, eta=given.eta, use_clipped_model_output=bool(given.use_clipped_model_output))


@dataclass(frozen=True, kw_only=True)
class PNDMGiven(UnconditionalGiven):
    """Arguments of :class:`PNDMPipeline`."""

    num_inference_steps: Count = 50

    positional = "batch_size num_inference_steps generator output_type return_dict"


@dataclass(frozen=True, kw_only=True)
class ScoreSdeGiven(PNDMGiven):
    """Arguments of pipelines in continuous time.

    Args:
        as_published: count as the paper does, so that a picture does not depend on the others of its batch; False is
            as the reference does. See the scheduler.
    """

    num_inference_steps: Count = 2000
    as_published: bool = False


@dataclass(frozen=True, kw_only=True)
class ScoreSdeVpGiven(PNDMGiven):
    """Arguments of :class:`ScoreSdeVpPipeline`."""

    num_inference_steps: Count = 1000


@dataclass(frozen=True, kw_only=True)
class KarrasVeGiven(ScoreSdeGiven):
    """Arguments of :class:`KarrasVePipeline`."""

    num_inference_steps: Count = 50


class PNDMPipeline(UnconditionalPipeline):
    """Unconditional pictures by PNDM; any scheduler it is given is turned into one.

    Example:
        >>> from langevin import PNDMPipeline
        >>> pipe = PNDMPipeline.from_pretrained("langevin/shapes-unconditional")
        >>> images = pipe(batch_size=4, num_inference_steps=50, seed=7).images
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        from langevin.schedulers.timesteps.pndm import PNDMScheduler

        super().__init__(unet, PNDMScheduler.from_config(scheduler.config))

    @takes(PNDMGiven)
    def __call__(self, given: PNDMGiven) -> Any:
        """Make ``batch_size`` pictures."""
        return self.generate(given)


class ScoreSdeVePipeline(UnconditionalPipeline):
    """Unconditional pictures by the reverse of a variance-exploding SDE, predictor and corrector: Song et al. 2021
    (2011.13456), algorithm 2. The network gives the score, is told σ, and knows pixels in [0, 1].

    Example:
        >>> from langevin import ScoreSdeVePipeline
        >>> pipe = ScoreSdeVePipeline.from_pretrained("google/ncsnpp-church-256")
        >>> images = pipe(num_inference_steps=1000, seed=7).images
    """

    _low = 0.0

    @takes(ScoreSdeGiven)
    def __call__(self, given: ScoreSdeGiven) -> Any:
        """Make ``batch_size`` pictures."""
        return self.generate(given, as_published=given.as_published)


class ScoreSdeVpPipeline(UnconditionalPipeline):
    """Unconditional pictures by the reverse of a variance-preserving SDE: Song et al. 2021 (2011.13456), equation 11
    in steps of Euler and Maruyama. The network gives ε = -σ(t)·score, and is told 999·t, as the paper's are: time t,
    1 to 0, in the thousand levels that its discrete sisters count.

    Example:
        >>> from langevin import ScoreSdeVpPipeline, ScoreSdeVpScheduler, UNet2DModel
        >>> unet = UNet2DModel.from_pretrained("langevin/shapes-unconditional", subfolder="unet")
        >>> pipe = ScoreSdeVpPipeline(unet, ScoreSdeVpScheduler())
        >>> images = pipe(num_inference_steps=1000, seed=7).images
    """

    def network(self) -> Callable[..., Any]:
        def in_levels(x: Tensor, time: float, return_dict: bool = False, **told: Any) -> tuple[Tensor]:
            return (self.unet(x, 999 * time, return_dict=False, **told)[0],)

        return in_levels

    @takes(ScoreSdeVpGiven)
    def __call__(self, given: ScoreSdeVpGiven) -> Any:
        """Make ``batch_size`` pictures."""
        return self.generate(given)


class KarrasVePipeline(UnconditionalPipeline):
    """Unconditional pictures by the stochastic sampler of Karras et al. 2022 (2206.00364), algorithm 2, from networks
    that were trained on variance-exploding noise: they are told σ/2, shown pixels in [0, 1], and give what σ/2
    scales.

    Example:
        >>> from langevin import KarrasVePipeline
        >>> pipe = KarrasVePipeline.from_pretrained("google/ncsnpp-celebahq-256")
        >>> images = pipe(num_inference_steps=20, seed=7).images
    """

    def network(self) -> Callable[..., Any]:
        def preconditioned(x: Tensor, sigma: float, return_dict: bool = False, **told: Any) -> tuple[Tensor]:
            """Table 1's F for this kind of network."""
            return (sigma / 2 * self.unet((x + 1) / 2, sigma / 2, return_dict=False, **told)[0],)

        return preconditioned

    @takes(KarrasVeGiven)
    def __call__(self, given: KarrasVeGiven) -> Any:
        """Make ``batch_size`` pictures."""
        return self.generate(given, as_published=given.as_published)
