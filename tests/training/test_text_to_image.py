"""Fine-tuning on pictures with captions: the reference's losses, and what is learned."""

from __future__ import annotations

import json
import random

import pytest
import torch
from PIL import Image, ImageChops, ImageOps

from langevin import DiffusionPipeline
from langevin.checkpoints.folders import BOX
from langevin.training.data import Places, Stream, collate
from langevin.training.flags import made
from langevin.training.loop import train
from langevin.training.recipes.text_to_image import TextToImage, TextToImageFlags
from langevin.training.report import read_table
from langevin.zoo.world import random_scene, render, training_caption

STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve pictures of the world with captions."""
    folder, rng, lines = tmp_path_factory.mktemp("data"), random.Random(1), []
    for k in range(12):
        scene = random_scene(rng)
        Image.fromarray(render([scene])[0]).save(folder / f"{k:02}.png")
        lines.append({"file_name": f"{k:02}.png", "text": training_caption(scene, rng)})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def recipe(data, out, cls=TextToImage, **flags):
    usual = dict(
        pretrained_model_name_or_path="langevin/shapes",
        train_data_dir=str(data),
        output_dir=str(out),
        resolution=32,
        center_crop=True,
        train_batch_size=2,
        max_train_steps=STEPS,
        learning_rate=1e-4,
        lr_warmup_steps=0,
        checkpointing_steps=0,
        report_to="none",
        seed=1,
    )
    return cls(made(TextToImageFlags, {**usual, **flags}))


class OneAfterTheOther:
    """Random numbers as the reference draws them: all from one generator, whole batches at a time."""

    def __init__(self, generator, rows):
        self.generator, self.rows = generator, rows

    def normal(self, shape):
        return torch.randn(shape, generator=self.generator)

    def whole(self, below):
        return torch.randint(below, (self.rows,), generator=self.generator)


class InTheirOrder(TextToImage):
    generator = None

    def draws(self, seed, places):
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(5)
        return OneAfterTheOther(self.generator, len(places))


def reference_losses(own, flags):
    """The reference's loop, written from its measured facts with its own parts."""
    import diffusers
    from diffusers.training_utils import compute_dream_and_update_latents, compute_snr

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(BOX / "shapes", torch_dtype=torch.float32)
    more = {"prediction_type": flags.prediction_type} if flags.prediction_type else {}
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config, **more)
    kind, unet = scheduler.config.prediction_type, pipe.unet.train()
    optimiser = torch.optim.AdamW(unet.parameters(), lr=flags.learning_rate)
    generator = torch.Generator().manual_seed(5)

    def normal(shape):
        return torch.randn(shape, generator=generator)

    stream, values = Stream(own.rows(), own.example, flags.seed), []
    for _, places in zip(range(STEPS), Places(flags.train_batch_size), strict=False):
        batch = collate([stream[place] for place in places])
        with torch.no_grad():
            law = pipe.vae.encode(batch["pixels"][:, 0]).latent_dist
            latents = (law.mean + law.std * normal(law.mean.shape)) * pipe.vae.config.scaling_factor
            tokens = pipe.tokenizer(batch["text"], padding="max_length", truncation=True, return_tensors="pt")
            states = pipe.text_encoder(tokens.input_ids)[0]
        noise = normal(latents.shape)
        if flags.noise_offset:
            noise = noise + flags.noise_offset * normal((*latents.shape[:2], 1, 1))
        put_in = noise + flags.input_perturbation * normal(latents.shape) if flags.input_perturbation else noise
        t = torch.randint(1000, (len(latents),), generator=generator)
        x = scheduler.add_noise(latents, put_in, t)
        target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, t)
        if flags.dream_training:
            x, target = compute_dream_and_update_latents(
                unet, scheduler, t, noise, x, target, states, flags.dream_detail_preservation
            )
        each = (unet(x, t, states, return_dict=False)[0] - target).square().mean((1, 2, 3))
        if flags.snr_gamma is not None:
            snr = compute_snr(scheduler, t)
            each = each * snr.clamp(max=flags.snr_gamma) / (snr if kind == "epsilon" else snr + 1)
        each.mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        values.append(each.mean().item())
    return values


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(snr_gamma=5.0, noise_offset=0.1, random_flip=True, center_crop=False),
        dict(input_perturbation=0.1, prediction_type="epsilon", snr_gamma=1.0),
        dict(dream_training=True, prediction_type="epsilon"),
    ],
    ids=str,
)
def test_the_first_twenty_losses_are_the_reference_ones(data, tmp_path, options):
    flags = dict(options, cache="off")
    train(recipe(data, tmp_path / "ours", InTheirOrder, **flags))
    own = recipe(data, tmp_path / "theirs", **flags)
    own.load()
    losses = [row["loss"] for row in read_table(tmp_path / "ours/logs/metrics.csv")]
    assert losses == pytest.approx(reference_losses(own, own.flags), abs=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_what_is_encoded_once_changes_nothing(data, tmp_path, flip):
    for cache in ("on", "off"):
        train(recipe(data, tmp_path / cache, cache=cache, random_flip=flip, caption_dropout=0.3, max_train_steps=6))
    cached, plain = ([r["loss"] for r in read_table(tmp_path / c / "logs/metrics.csv")] for c in ("on", "off"))
    assert cached == pytest.approx(plain, abs=1e-5)


def test_pictures_that_are_cut_at_random_are_encoded_each_time(data, tmp_path):
    for path in data.iterdir():
        (tmp_path / "data").mkdir(exist_ok=True)
        if path.suffix == ".png":
            ImageOps.expand(Image.open(path), (0, 0, 40, 0)).save(tmp_path / "data" / path.name)
        else:
            (tmp_path / "data" / path.name).write_text(path.read_text())
    own = recipe(tmp_path / "data", tmp_path / "out", center_crop=False, cache="on")
    own.load()
    rows = own.rows()
    own.prepare(rows)
    assert not own.encoded
    assert len(own.texts) > 5
    stream = Stream(rows, own.example, 1)
    assert not torch.equal(
        stream[0]["pixels"],
        stream[len(rows) + [stream[len(rows) + k]["text"] for k in range(12)].index(stream[0]["text"])]["pixels"],
    )


def test_the_result_is_a_pipeline_of_both_libraries(data, tmp_path):
    import diffusers

    train(recipe(data, tmp_path, max_train_steps=1, validation_prompts=["a red circle"], use_ema=True))
    assert (tmp_path / "validation/sheet.png").exists()
    ours = DiffusionPipeline.from_pretrained(tmp_path)
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(ours).__name__ == type(theirs).__name__ == "StableDiffusionPipeline"
    for name, weight in theirs.unet.state_dict().items():
        torch.testing.assert_close(ours.unet.state_dict()[name], weight)
    trained = DiffusionPipeline.from_pretrained("langevin/shapes").unet.state_dict()
    assert any(
        not torch.equal(weight.float(), trained[name].float()) for name, weight in ours.unet.state_dict().items()
    )


def test_what_is_learned_holds_for_pictures_that_were_set_aside(tmp_path):
    """A world seen through yellow glass: the loss on pictures that were not trained on falls to less than half."""
    tinted, rng, lines = tmp_path / "tinted", random.Random(4), []
    tinted.mkdir()
    glass = Image.new("RGB", (64, 64), (255, 255, 90))
    for k in range(40):
        scene = random_scene(rng)
        ImageChops.multiply(Image.fromarray(render([scene])[0]), glass).save(tinted / f"{k:02}.png")
        lines.append({"file_name": f"{k:02}.png", "text": training_caption(scene, rng)})
    (tinted / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = dict(
        resolution=64, train_batch_size=8, max_train_steps=30, learning_rate=1e-3, held_out=8, held_out_steps=30
    )
    train(recipe(tinted, tmp_path / "out", **flags))
    rows = read_table(tmp_path / "out/logs/metrics.csv")
    first, last = (row["held_out_loss"] for row in (rows[0], rows[-1]))
    assert last < first / 2
