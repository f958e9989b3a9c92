"""Audio diffusion (Teticio): sound made as pictures of its spectrum, in pixels or in latents."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import acos, sin
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from langevin.checks import Count, Range
from langevin.codecs.base import Codec
from langevin.codecs.pixels import PixelCodec
from langevin.codecs.vae import VaeCodec
from langevin.guiders.base import Guider
from langevin.guiders.kept_sound import KeptSound, StepNoise
from langevin.media.convert import to_pictures, to_tensor
from langevin.media.sound import SoundFile
from langevin.models.unet_2d_condition import UNet2DConditionModel
from langevin.outputs import AudioDiffusionPipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call
from langevin.pipelines.given import Given, takes
from langevin.pipelines.parts import takes_parts
from langevin.schedulers.timesteps.ddim import DDIMScheduler
from langevin.schedulers.timesteps.ddim_inverse import DDIMInverseScheduler

Number = TypeVar("Number", float, Tensor)
Seconds = Annotated[float, Range(0, 3600)]
Whole = Annotated[int, Range(0, 10**6)]


@dataclass(frozen=True, kw_only=True)
class AudioDiffusionGiven(Given):
    """Arguments of :class:`AudioDiffusionPipeline`.

    Args:
        batch_size: how many sounds to make; with ``noise``, as many as there are of it.
        audio_file: a sound to begin from or to keep the ends of: WAV, or with soundfile other kinds.
        raw_audio: the same as an array ``(samples,)`` at the mel's rate.
        slice: which slice of it, counted from 0.
        start_step: leave out so many steps, and begin from the sound, or without one from the noise as it is.
        steps: more steps, finer sounds; :meth:`~AudioDiffusionPipeline.get_default_steps` where None.
        mask_start_secs, mask_end_secs: how many seconds of the sound are kept at its start and at its end.
        step_generator: draws the noise of the steps, where ``generator`` is to draw only what they begin with.
        eta: 0 is deterministic, 1 has the noise of DDPM; for DDIM.
        noise: what to begin with, ``(batch, channels, height, width)``, such as :meth:`~AudioDiffusionPipeline.encode`
            gives.
        encoding: of what the sound is to be like, ``(batch or 1, tokens, dim)``, for networks that are told.
        exact_levels: keep, and begin from, what is given at the noise that x has. False is as the reference does, one
            step noisier; see :class:`KeptSound`.
    """

    batch_size: Count = field(default=1, kw_only=False)
    audio_file: str | os.PathLike | None = None
    raw_audio: np.ndarray | None = None
    slice: Whole = 0
    start_step: Whole = 0
    steps: Count | None = None
    mask_start_secs: Seconds = 0
    mask_end_secs: Seconds = 0
    step_generator: Generator | Sequence[Generator] | None = None
    eta: Annotated[float, Range(0)] = 0
    noise: Tensor | None = None
    encoding: Tensor | None = None
    exact_levels: bool = False

    positional = (
        "batch_size audio_file raw_audio slice start_step steps generator mask_start_secs mask_end_secs "
        "step_generator eta noise encoding return_dict"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.audio_file is None and self.raw_audio is None and (self.mask_start_secs or self.mask_end_secs):
            raise ValueError("mask_start_secs and mask_end_secs keep parts of a sound; give audio_file or raw_audio")

    def record(self) -> dict[str, Any]:
        return {**super().record(), "audio_file": None if self.audio_file is None else SoundFile(self.audio_file)}


@dataclass(frozen=True, kw_only=True)
class EncodeGiven(Given):
    """Arguments of :meth:`AudioDiffusionPipeline.encode`.

    Args:
        images: pictures of sounds.
        steps: more steps, truer noise.
        encoding: see the call.
    """

    images: Any = field(kw_only=False, default=())
    steps: Count = 50
    encoding: Tensor | None = None

    positional = "images steps"


class AudioDiffusionPipeline(DiffusionPipeline):
    """Sounds, and the pictures of their spectra that they are made as.

    Args:
        vqvae: an :class:`AutoencoderKL` where the network works in latents; None where in pixels.
        unet: a :class:`UNet2DModel`, or a :class:`UNet2DConditionModel` that is told an ``encoding``.
        mel: the :class:`Mel` that its pictures are made with.
        scheduler: such as :class:`DDIMScheduler` or :class:`DDPMScheduler`.

    Example:
        >>> from langevin import AudioDiffusionPipeline
        >>> pipe = AudioDiffusionPipeline.from_pretrained("teticio/audio-diffusion-ddim-256")
        >>> made = pipe(seed=7)
        >>> made.sounds[0].save("loop.wav")
        >>> made.images[0].save("loop.png")
    """

    model_cpu_offload_seq = "unet->vqvae"
    _optional_components = ["vqvae"]
    _callback_tensor_inputs = ["latents"]

    @takes_parts
    def __init__(self, vqvae: Any, unet: Any, mel: Any, scheduler: Any) -> None:
        pass

    @takes(AudioDiffusionGiven)
    def __call__(self, given: AudioDiffusionGiven) -> Any:
        """Make sounds.

        With ``return_dict=False`` it gives ``(images, (sample rate, [samples, …]))``.

        Raises:
            FileNotFoundError, ValueError: there is no such sound, or arguments do not fit it or the network.
        """
        batch = given.batch_size if given.noise is None else len(given.noise)
        shape = self.shape(batch) if given.noise is None else tuple(given.noise.shape)
        call = Call(self, given, batch)
        setup = call.stage(
            self.unet,
            self.scheduler,
            shape,
            {"positive": self._told(given.encoding, batch)},
            [*self._beginning(given, shape), *given.guiders],
            steps=given.steps or self.get_default_steps(),
            codec=self.codec,
            latents=given.noise,
            options={"eta": given.eta},
            start=given.start_step,
        )
        grey = _grey(call.decode(setup, call.denoise(setup)).float().cpu())
        waves = self.mel.decode(grey)
        rate = self.mel.get_sample_rate()
        sounds = call.deliver_sounds(waves, rate, batch_size=None)
        return AudioDiffusionPipelineOutput(waves.numpy(), call.deliver(grey, batch_size=None), sounds)

    @takes(EncodeGiven)
    def encode(self, given: EncodeGiven) -> Tensor:
        """The noise that pictures would be made of, ``(batch, channels, height, width)``: DDIM's steps walked back.

        Raises:
            ValueError: the scheduler is no DDIM.
        """
        if not isinstance(self.scheduler, DDIMScheduler):
            raise ValueError(f"encode walks DDIM's steps back; the scheduler is a {type(self.scheduler).__name__}")
        images = [given.images] if hasattr(given.images, "convert") else list(given.images)
        pixels = to_tensor([image.convert("L") for image in images], channels=1)
        codec = self.codec
        x = codec.encode(pixels.to(self._execution_device, self.unet.dtype))
        call = Call(self, given, len(x))
        inverse = DDIMInverseScheduler.from_config(self.scheduler.config, clip_sample=False)
        told = {"positive": self._told(given.encoding, len(x))}
        setup = call.stage(self.unet, inverse, tuple(x.shape), told, given.guiders, steps=given.steps, codec=codec, x=x)
        return call.denoise(setup)

    @staticmethod
    def slerp(x0: Tensor, x1: Tensor, alpha: float) -> Tensor:
        """From one noise to another along an arc, so that what lies between is as loud (Shoemake 1985).

        Args:
            alpha: 0 is ``x0``, 1 is ``x1``.
        """
        a, b = x0.double().flatten(), x1.double().flatten()
        angle = acos(max(-1.0, min(1.0, float(a @ b / (a.norm() * b.norm()).clamp_min(1e-300)))))
        if sin(angle) < 1e-6:  # the same direction, or opposite ones, between which there are many arcs
            return x0 + alpha * (x1 - x0)
        return sin((1 - alpha) * angle) / sin(angle) * x0 + sin(alpha * angle) / sin(angle) * x1

    def get_default_steps(self) -> int:
        """Steps of a call that was not told: 50 with DDIM, else 1000."""
        return 50 if isinstance(self.scheduler, DDIMScheduler) else 1000

    @property
    def codec(self) -> Codec:
        """Pictures to what the network denoises."""
        return PixelCodec(self.unet.config.in_channels) if self.vqvae is None else VaeCodec(self.vqvae)

    def shape(self, batch: int) -> tuple[int, ...]:
        """Of x, as the network was made for."""
        size = self.unet.config.sample_size
        return (batch, self.unet.config.in_channels, *([size, size] if isinstance(size, int) else size))

    def _told(self, encoding: Tensor | None, batch: int) -> dict[str, Any]:
        """What the network is told beside the time."""
        if isinstance(self.unet, UNet2DConditionModel) != (encoding is not None):
            needed = "needs an encoding; give encoding=…" if encoding is None else "is told no encoding; leave it out"
            raise ValueError(f"this network ({type(self.unet).__name__}) {needed}")
        if encoding is None:
            return {}
        if encoding.ndim != 3 or len(encoding) not in (1, batch):
            raise ValueError(f"encoding is {tuple(encoding.shape)}; (1 or {batch}, tokens, dim) is needed")
        told = encoding.to(self._execution_device, self.unet.dtype)
        return {"encoder_hidden_states": told.expand(batch, -1, -1)}

    def _beginning(self, given: AudioDiffusionGiven, shape: tuple[int, ...]) -> list[Guider]:
        """What of a sound is begun from and kept, and where the steps' noise comes from."""
        guiders: list[Guider] = []
        if given.audio_file is not None or given.raw_audio is not None:
            audio = self.mel.cut(self.mel.read(given.audio_file, given.raw_audio), given.slice)
            columns = shape[-1] * self.mel.get_sample_rate() / self.mel.x_res / self.mel.hop_length  # in a second
            image = self.mel.encode(torch.from_numpy(audio)[None, None])
            left, right = int(given.mask_start_secs * columns), int(given.mask_end_secs * columns)
            guiders.append(KeptSound(image, given.start_step, left, right, given.exact_levels))
        return guiders if given.step_generator is None else [*guiders, StepNoise(given.step_generator)]


def _grey(pixels: Tensor) -> Tensor:
    """Pictures ``(batch, 1 or 3, height, width)`` in [-1, 1] with one channel, as grey pictures have it."""
    if pixels.shape[1] == 1:
        return pixels
    grey = [np.array(picture.convert("L"), dtype=np.float32) for picture in to_pictures(pixels)]
    return torch.from_numpy(np.stack(grey))[:, None] / 127.5 - 1
