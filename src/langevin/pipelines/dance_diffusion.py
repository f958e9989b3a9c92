"""Dance Diffusion: sound by a network that denoises it sample by sample, with v-prediction in continuous time."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, Any, Literal

from langevin.checks import Count, Range
from langevin.codecs.waveform import WaveformCodec
from langevin.outputs import AudioPipelineOutput
from langevin.pipelines.base import DiffusionPipeline
from langevin.pipelines.call import Call
from langevin.pipelines.given import Given, takes
from langevin.pipelines.parts import takes_parts


@dataclass(frozen=True, kw_only=True)
class DanceGiven(Given):
    """Arguments of :class:`DanceDiffusionPipeline`.

    Args:
        batch_size: how many sounds to make.
        num_inference_steps: more steps, finer sounds.
        audio_length_in_s: seconds; that of the network's ``sample_size`` where None.
        output_type: form of ``audios``: "np" for an array, "pt" for a tensor.
    """

    batch_size: Count = field(default=1, kw_only=False)
    num_inference_steps: Count = 100
    audio_length_in_s: Annotated[float, Range(0, 3600)] | None = None
    output_type: Literal["np", "pt"] = "np"

    positional = "batch_size num_inference_steps generator audio_length_in_s return_dict"


class DanceDiffusionPipeline(DiffusionPipeline):
    """Sounds, from nothing but noise (Harmonai's Dance Diffusion).

    Args:
        unet: a :class:`UNet1DModel` whose config names its ``sample_rate``.
        scheduler: an :class:`IPNDMScheduler`, or another whose time the network knows.

    Example:
        >>> from langevin import DanceDiffusionPipeline
        >>> pipe = DanceDiffusionPipeline.from_pretrained("harmonai/maestro-150k")
        >>> pipe(audio_length_in_s=4.0, seed=7).sounds[0].save("piano.wav")
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    @takes_parts
    def __init__(self, unet: Any, scheduler: Any) -> None:
        pass

    @takes(DanceGiven)
    def __call__(self, given: DanceGiven) -> Any:
        """Make ``batch_size`` sounds.

        Raises:
            ValueError: fewer seconds than the network takes, or it names no ``sample_rate``.
        """
        rate, samples = self._length(given.audio_length_in_s)
        multiple = max(self.unet.multiple, 2 ** len(self.unet.config.up_block_types))
        codec = WaveformCodec(self.unet.config.in_channels, multiple, int(samples))
        call = Call(self, given, given.batch_size)
        setup = call.stage(
            self.unet,
            self.scheduler,
            codec.shape(given.batch_size, (ceil(samples),)),
            guiders=given.guiders,
            steps=given.num_inference_steps,
            codec=codec,
        )
        waves = call.decode(setup, call.denoise(setup)).float().clamp(-1, 1).cpu()
        sounds = call.deliver_sounds(waves, rate, batch_size=None)
        return AudioPipelineOutput(waves if given.output_type == "pt" else waves.numpy(), sounds)

    def _length(self, seconds: float | None) -> tuple[int, float]:
        """Samples in a second, and how many to make."""
        rate, shortest = self.unet.config.get("sample_rate"), self.unet.shortest
        if not rate:
            raise ValueError(
                f"{self.name_or_path or 'the unet'} names no sample_rate, so that seconds have no length in samples; "
                "load its unet with sample_rate=…"
            )
        samples = self.unet.config.sample_size if seconds is None else seconds * rate
        if samples < shortest:
            raise ValueError(
                f"audio_length_in_s is {samples / rate:g}; this network takes {shortest / rate:g} and more "
                f"({shortest} samples at {rate} Hz)"
            )
        return rate, samples
