"""Unconditional pictures in pixel space: DDPM (2006.11239) and DDIM (2010.02502)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from langevin.checks import Count, Share
from langevin.codecs.pixels import PixelCodec
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call
from langevin.pipelines.given import Given, takes


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

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def generate(self, given: UnconditionalGiven, **options: Any) -> ImagePipelineOutput:
        """Make pictures; ``options`` are of the scheduler's run, where it takes them."""
        codec = PixelCodec(self.unet.config.in_channels)
        size = self.unet.config.sample_size
        call = Call(self, given, given.batch_size)
        setup = call.stage(
            self.unet,
            self.scheduler,
            codec.shape(given.batch_size, (size, size) if isinstance(size, int) else size),
            guiders=given.guiders,
            steps=given.num_inference_steps,
            options=options,
            codec=codec,
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
