"""Unconditional pictures in pixel space: DDPM (2006.11239) and DDIM (2010.02502)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Generator

from langevin.codecs import PixelCodec
from langevin.denoiser import NetworkDenoiser
from langevin.guiders.base import Guider, Input, Setup
from langevin.outputs import ImagePipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call, Callbacks
from langevin.pipelines.results import call_settings, check_output_type, deliver, per_picture
from langevin.randomness import noise_for


class UnconditionalPipeline(DiffusionPipeline):
    """Noise to pictures with a UNet2DModel; the base of the pipelines named for their schedulers."""

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def _sample(self, arguments: dict[str, Any], **run_options: Any) -> ImagePipelineOutput | tuple:
        """The call of every unconditional pipeline; ``arguments`` are those of its ``__call__``."""
        get = arguments.__getitem__
        batch, steps = get("batch_size"), get("num_inference_steps")
        if not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch_size is {batch!r}; it must be a whole number of at least 1")
        check_output_type(get("output_type"))
        callbacks = Callbacks(
            get("callback_on_step_end"), get("callback_on_step_end_tensor_inputs"), self._callback_tensor_inputs
        )
        size = self.unet.config.sample_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        noise, seeds = noise_for(batch, get("generator"), get("seed"))
        accepted = {k: v for k, v in run_options.items() if k in self.scheduler.run_options}
        codec = PixelCodec(self.unet.config.in_channels)
        inputs: list[Input] = []
        setup = Setup(
            run=self.scheduler.plan(steps, **accepted),
            steps=steps,
            order=self.scheduler.order,
            branches={"positive": {}},
            guiders=[guider.begin() for guider in get("guiders")],
            network=self.unet,
            denoiser=NetworkDenoiser(self.unet, inputs),
            inputs=inputs,
            codec=codec,
            noise=noise,
            shape=(batch, codec.channels, *size),
            device=self._execution_device,
            dtype=self.unet.dtype,
        )
        call = Call(self, setup, callbacks)
        pixels = call.decode(call.denoise())

        recorded = {k: v for k, v in arguments.items() if k not in ("generator", "output_type", "return_dict")}
        settings = call_settings(self, recorded, height=size[0], width=size[1], batch_size=None)
        images = deliver(pixels, get("output_type"), per_picture(settings, seeds))
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if get("return_dict") else (images,)


class DDPMPipeline(UnconditionalPipeline):
    """Unconditional pictures by ancestral sampling.

    Example:
        >>> from langevin import DDPMPipeline
        >>> pipe = DDPMPipeline.from_pretrained("langevin/shapes-unconditional")
        >>> images = pipe(batch_size=4, num_inference_steps=100, seed=7).images
    """

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator | list[Generator] | None = None,
        num_inference_steps: int = 1000,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        *,
        seed: int | Sequence[int] | None = None,
        guiders: Sequence[Guider] = (),
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Make ``batch_size`` pictures.

        Args:
            generator: one for the batch, or a list with one per picture; or ``seed``, where picture k has ``seed + k``.
            output_type: "pil", "np" ``(batch, height, width, channels)`` or "pt" ``(batch, channels, height, width)``,
                both in [0, 1].
            guiders: see :mod:`langevin.guiders`.
            callback_on_step_end: ``(call, i, t, tensors) -> tensors`` after every step.
        """
        return self._sample({k: v for k, v in locals().items() if k not in ("self", "__class__")})


class DDIMPipeline(UnconditionalPipeline):
    """Unconditional pictures by DDIM; any scheduler it is given is turned into one.

    Example:
        >>> from langevin import DDIMPipeline
        >>> pipe = DDIMPipeline.from_pretrained("langevin/shapes-unconditional")
        >>> images = pipe(batch_size=4, num_inference_steps=50, seed=7).images
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        from langevin.schedulers.ddim import DDIMScheduler

        super().__init__(unet, DDIMScheduler.from_config(scheduler.config))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generator | list[Generator] | None = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        *,
        seed: int | Sequence[int] | None = None,
        guiders: Sequence[Guider] = (),
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Make ``batch_size`` pictures.

        Args:
            eta: 0 is deterministic, 1 has the noise of DDPM (η of the paper's equation 16).
            use_clipped_model_output: recompute the noise from the clipped picture, as GLIDE does.

        The other arguments are those of :class:`DDPMPipeline`.
        """
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        return self._sample(arguments, eta=eta, use_clipped_model_output=bool(use_clipped_model_output))
