"""What recipes share that train in the latents of a checkpoint: its parts, its texts, its losses, and what is encoded
once and not again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from langevin.checkpoints.errors import CheckpointError
from langevin.checks import Share
from langevin.training import losses
from langevin.training.data import Draws, Frame, Framing, Row, check_column, picture, rows_of
from langevin.training.flags import BadFlags, PictureFlags, Rate
from langevin.training.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class LatentFlags(PictureFlags):
    """What recipes take that go on from a checkpoint.

    Args:
        pretrained_model_name_or_path: the checkpoint to go on from: a folder, a name in the box, or a hub id.
        revision, variant: of a checkpoint on the hub, and of its files (fp16).
        caption_column: the data's column of texts; where a row has several, one is drawn each time.
        snr_gamma: weigh errors by min(SNR, gamma); 5 is usual.
        loss_weighting: another weighting by the signal-to-noise ratio.
        huber: errors are measured as pseudo-Huber with this delta in place of squared.
        noise_offset: add so much noise that is the same at all places.
        multi_resolution_noise: add noise of lower resolutions, each so much weaker than the one before.
        input_perturbation: perturb x by so much more noise, which is not part of the target; 0.1 is usual.
        zero_terminal_snr: train with noise that leaves nothing of the picture at the last level.
        prediction_type: what the network learns to give; the checkpoint's own where none is given.
        caption_dropout: share of texts that are left empty, so that guidance works.
        cache: encode pictures and texts once, where that changes nothing: auto (where there is memory), on or off.
    """

    pretrained_model_name_or_path: str = ""
    revision: str | None = None
    variant: str | None = None
    caption_column: str = "text"
    snr_gamma: Rate | None = None
    loss_weighting: Literal["min_snr", "soft_min_snr", "p2", "debiased"] | None = None
    huber: Rate | None = None
    noise_offset: Rate = 0.0
    multi_resolution_noise: Share = 0.0
    input_perturbation: Rate = 0.0
    zero_terminal_snr: bool = False
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    caption_dropout: Share = 0.0
    cache: Literal["auto", "on", "off"] = "auto"

    required: ClassVar[tuple[str, ...]] = ("pretrained_model_name_or_path",)

    def check(self) -> None:
        super().check()
        if self.snr_gamma is not None and self.loss_weighting not in (None, "min_snr", "soft_min_snr"):
            raise BadFlags(f"--snr_gamma is no setting of --loss_weighting={self.loss_weighting}; leave one out")
        if self.cache == "on" and not self.center_crop:
            logger.info("--cache=on without --center_crop: pictures that are not square are encoded at each step")


class LatentRecipe(Recipe):
    """Training in the latents of a checkpoint."""

    pipeline_name: ClassVar[str] = "StableDiffusionPipeline"

    def load_pipeline(self, **parts: Any) -> Any:
        """The checkpoint, perhaps with other ``parts``. What is trained stays float32, all else is as small as the
        precision allows.

        Raises:
            BadFlags: it cannot be loaded.
        """
        import langevin

        flags = self.flags
        options = {name: getattr(flags, name) for name in ("revision", "variant") if getattr(flags, name)}
        try:
            cls = getattr(langevin, self.pipeline_name)
            self.pipe: Any = cls.from_pretrained(
                flags.pretrained_model_name_or_path, torch_dtype=torch.float32, disable_mmap=True, **options, **parts
            )
        except CheckpointError as error:
            raise BadFlags(f"--pretrained_model_name_or_path: {error}") from None
        more = {"prediction_type": flags.prediction_type} if flags.prediction_type else {}
        more |= {"rescale_betas_zero_snr": True} if flags.zero_terminal_snr else {}
        self.scheduler = langevin.DDPMScheduler.from_config(self.pipe.scheduler.config, **more)
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        for part in (self.pipe.vae, self.pipe.text_encoder):
            part.to(self.device, self.dtype).eval()
        return self.pipe

    @property
    def prediction_type(self) -> str:
        return self.scheduler.config.prediction_type

    # -- examples

    def rows(self) -> Sequence[Row]:
        rows = rows_of(self.flags)
        check_column(rows, self.flags.caption_column, "caption_column")
        return rows

    @property
    def framing(self) -> Framing:
        """How pictures are cut."""
        flags = self.flags
        side = flags.resolution
        return Framing(side, side, flags.center_crop, flags.random_flip, flags.image_interpolation_mode)

    def views(self, row: Row) -> list[Any]:
        """The pictures of a row that are encoded, which all get one frame; the first is what is learned."""
        return [picture(row[self.flags.image_column])]

    def example(self, index: int, row: Row, rng: Random) -> dict[str, Any]:
        framing, known = self.framing, self.encoded.get(index)
        if known is not None:  # where the frame is the same every time
            frame = framing.choose((framing.width, framing.height), rng)
            made: dict[str, Any] = {"moments": known[frame.mirrored]}
        else:
            images = self.views(row)
            frame = framing.choose(images[0].size, rng)
            made = {"pixels": torch.stack([framing.apply(image, frame) for image in images])}
        return {**made, **self.more(row, frame), "text": self.caption(row, rng)}

    def more(self, row: Row, frame: Frame) -> dict[str, Any]:
        """What else an example has, such as a control picture in the same frame."""
        return {}

    def caption(self, row: Row, rng: Random) -> str:
        """The text of a row.

        Raises:
            BadFlags: it is none.
        """
        value = row.get(self.flags.caption_column)
        if isinstance(value, (list, tuple)) and value:
            value = rng.choice(value)
        if not isinstance(value, str):
            name = self.flags.caption_column
            raise BadFlags(f"the column {name!r} holds {value!r}; a text, or a list of texts, is needed")
        return "" if self.flags.caption_dropout and rng.random() < self.flags.caption_dropout else value

    # -- what is encoded once

    encoded: Mapping[int, dict[bool, Tensor]] = {}
    texts: Mapping[str, Tensor] = {}

    @torch.no_grad()
    def prepare(self, rows: Sequence[Row]) -> None:
        """Encode pictures that always have the same frame, and all texts; they stay in memory."""
        flags, framing = self.flags, self.framing
        if flags.cache == "off" or flags.dry_run:
            return
        side = flags.resolution // self.pipe.vae_scale_factor
        each = 2 * self.pipe.vae.config.latent_channels * side**2 * 4
        size = len(rows) * (2 if framing.flip else 1) * each * self.view_count
        if flags.cache == "auto" and size > _free_memory() / 4:
            logger.info("encoded pictures would take %.1f GiB; they are encoded at each step", size / 2**30)
            return
        from tqdm import tqdm

        encoded: dict[int, dict[bool, Tensor]] = {}
        captions: dict[str, None] = {"": None}
        for index in tqdm(range(len(rows)), desc="encoding", mininterval=0.5, leave=False):
            row = rows[index]
            value = row.get(flags.caption_column)
            captions |= dict.fromkeys(value if isinstance(value, (list, tuple)) else [value])
            images = self.views(row)
            if framing.centre or framing.resized(images[0].size) == (framing.width, framing.height):
                middle = dataclasses.replace(framing, centre=True, flip=False)
                frame = middle.choose(images[0].size, Random(0))
                encoded[index] = {
                    mirrored: self.moments(
                        torch.stack([middle.apply(image, Frame(frame.top, frame.left, mirrored)) for image in images])
                    ).cpu()
                    for mirrored in ((False, True) if framing.flip else (False,))
                }
        self.encoded = encoded
        if self.texts_stay and len(captions) * 77 * 1024 * 4 < _free_memory() / 4:
            self.texts = {text: self.read([text])[0].cpu() for text in captions if isinstance(text, str)}

    view_count: ClassVar[int] = 1
    """How many pictures :meth:`views` gives."""

    texts_stay: bool = True
    """Whether a text is encoded the same way at every step: no part that reads texts is trained."""

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """(rows, 2, channels, height, width): mean and standard deviation of the latents, not scaled."""
        law = self.pipe.vae.encode(pixels.to(self.device, self.pipe.vae.dtype)).latent_dist
        return torch.stack([law.mean.float(), law.std.float()], 1)

    def law(self, batch: Mapping[str, Any]) -> Tensor:
        """(rows, views, 2, channels, height, width): mean and standard deviation of all latents of a batch."""
        if "moments" in batch:
            return batch["moments"]
        pixels = batch["pixels"]
        return self.moments(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def latents(self, batch: Mapping[str, Any], draws: Draws) -> Tensor:
        """Latents of a batch's pictures, drawn as the autoencoder says and scaled."""
        return self.drawn(self.law(batch)[:, 0], draws)

    def drawn(self, law: Tensor, draws: Draws) -> Tensor:
        mean, std = law.unbind(1)
        return (mean + std * draws.normal(tuple(mean.shape))) * self.pipe.vae.config.scaling_factor

    def states(self, batch: Mapping[str, Any], encoder: Any = None) -> Tensor:
        """What the text encoder says of a batch's texts, ``(rows, tokens, dim)``; or another one, that is trained."""
        texts = batch["text"]
        if encoder is not None:
            return self.read(texts, encoder)
        if all(text in self.texts for text in texts):
            return torch.stack([self.texts[text] for text in texts]).to(self.device)
        with torch.no_grad():
            return self.read(texts)

    def read(self, texts: Sequence[str], encoder: Any = None) -> Tensor:
        """Texts as the network is told them, without weights and other marks, ``(texts, tokens, dim)``."""
        pipe = self.pipe
        tokens = pipe.tokenizer(
            list(texts), padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        encoder = pipe.text_encoder if encoder is None else encoder
        return encoder(tokens.to(self.device))[0]

    # -- the loss

    def noised(self, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The noise that is learned, x, and its timesteps."""
        flags = self.flags
        noise = draws.normal(tuple(clean.shape))
        if flags.noise_offset:
            noise = losses.with_offset(noise, draws.normal, flags.noise_offset)
        if flags.multi_resolution_noise:
            noise = losses.multi_resolution(noise, draws.normal, flags.multi_resolution_noise)
        put_in = losses.perturbed(noise, draws.normal, flags.input_perturbation) if flags.input_perturbation else noise
        t = draws.whole(len(self.scheduler))
        return noise, self.scheduler.add_noise(clean, put_in, t), t

    def measured(self, predicted: Tensor, target: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """(rows,) what the errors cost."""
        flags = self.flags
        error = predicted.float() - target.float()
        values = losses.squared(error) if flags.huber is None else losses.huber(error, flags.huber)
        rows = losses.mean_of_rows(values, mask)
        name = flags.loss_weighting or ("min_snr" if flags.snr_gamma is not None else None)
        if name is None:
            return rows
        options = () if flags.snr_gamma is None else (flags.snr_gamma,)
        return rows * losses.weights(name, losses.signal_to_noise(self.scheduler, t), self.prediction_type, *options)

    def loss(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any], draws: Draws) -> Tensor:
        clean = self.latents(batch, draws)
        noise, x, t = self.noised(clean, draws)
        states = self.states(batch)
        target = losses.target(self.scheduler, clean, noise, t, self.prediction_type)
        return self.measured(networks["unet"](x, t, states).sample, target, t)

    # -- results

    def with_networks(self, networks: Mapping[str, Any]) -> Any:
        """The checkpoint's pipeline with the trained networks."""
        return type(self.pipe)(**{**self.pipe.components, **networks}, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {name: self.pipe.config[name] for name in self.pipe._arguments()[1] if name in self.pipe.config}

    def save(self, networks: Mapping[str, Any], folder: Path) -> None:
        pipe = self.with_networks(networks)
        if self.flags.prediction_type or self.flags.zero_terminal_snr:
            changed: dict[str, Any] = {"prediction_type": self.prediction_type}
            changed |= {"rescale_betas_zero_snr": True} if self.flags.zero_terminal_snr else {}
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changed)
        pipe.save_pretrained(folder)

    def paint(self, networks: Mapping[str, Any], prompts: Sequence[str], count: int = 1, **call: Any) -> list[Any]:
        """Pictures of prompts, ``count`` each, from fixed seeds."""
        for network in networks.values():
            network.to(self.device)
        pipe, size = self.with_networks(networks), self.flags.resolution
        call = {"height": size, "width": size, "num_images_per_prompt": count, **call}
        return [image for prompt in prompts for image in self.painted(pipe, prompt, **call)]

    def painted(self, pipe: Any, prompt: str, **call: Any) -> list[Any]:
        """A validation's pictures of a prompt."""
        for network in pipe._networks().values():
            network.eval()
        pipe.set_progress_bar_config(leave=False, desc="validation")
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return pipe(prompt, seed=self.flags.seed or 0, **call).images


def _free_memory() -> int:
    """Bytes that this machine could still give; where that cannot be known, 8 GiB."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration, ValueError):
        return 8 * 2**30
