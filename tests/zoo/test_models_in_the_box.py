"""The shipped models paint what they are asked for."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import langevin
from langevin import zoo
from langevin.zoo import evaluate, reader, world

SHAPES, UNCONDITIONAL = "langevin/shapes", "langevin/shapes-unconditional"


@pytest.fixture(scope="module")
def pipe():
    made = langevin.DiffusionPipeline.from_pretrained(zoo.path(SHAPES))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def unconditional():
    made = langevin.DiffusionPipeline.from_pretrained(zoo.path(UNCONDITIONAL))
    made.set_progress_bar_config(disable=True)
    return made


def test_naming_the_models_costs_no_torch():
    code = "import sys, langevin.zoo as z; z.path(z.names()[0]); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_unknown_names_get_one_clear_line():
    with pytest.raises(KeyError, match="no model 'langevin/nothing' in the box; there are: langevin/shapes, "):
        zoo.path("langevin/nothing")


def test_the_box_is_small_and_complete():
    files = [file for name in zoo.names() for file in zoo.path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 32e6
    assert {folder.name for folder in zoo.path(SHAPES).parent.iterdir()} == {name.split("/")[1] for name in zoo.names()}
    for name in zoo.names():
        assert (zoo.path(name) / "README.md").is_file()
        if not (zoo.path(name) / "model_index.json").is_file():  # a network alone
            assert (zoo.path(name) / "config.json").is_file()
            continue
        index = json.loads((zoo.path(name) / "model_index.json").read_text())
        parts = {part for part, where in index.items() if isinstance(where, list) and where[0]}
        homes = [zoo.path(name), zoo.path(index.get("_parts_from", name))]
        assert all(any((home / part).is_dir() for home in homes) for part in parts)


def test_weights_are_half_precision_and_finite():
    from safetensors.torch import load_file

    for name in zoo.names():
        for file in zoo.path(name).rglob("*.safetensors"):
            for key, tensor in load_file(file).items():
                assert tensor.dtype == torch.float16, (file.name, key)
                assert tensor.isfinite().all(), (file.name, key)


def test_the_text_encoder_ends_where_the_tokenizer_says(pipe):
    config, tokenizer = pipe.text_encoder.config, pipe.tokenizer
    assert config.eos_token_id == tokenizer.eos_token_id != 2
    assert config.bos_token_id == tokenizer.bos_token_id
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == tokenizer.model_max_length


def test_autoencoder_keeps_what_a_picture_shows(pipe):
    import random

    rng = random.Random(8)
    scenes = [world.random_scene(rng) for _ in range(60)]
    images = torch.from_numpy(world.render(scenes)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(images).latent_dist.mean
        again = pipe.vae.decode(latents).sample.clamp(-1, 1)
    assert latents.shape == (60, 4, 16, 16)
    assert (latents * pipe.vae.config.scaling_factor).std() == pytest.approx(1, abs=0.1)
    error = ((again - images) / 2).square().mean((1, 2, 3))
    assert -10 * error.log10().mean() > 32  # decibels
    pixels = ((again + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    same = [
        reader.matches(reader.read(p), world.parse(world.caption(s, rng))) for p, s in zip(pixels, scenes, strict=True)
    ]
    assert sum(same) >= 0.9 * len(same)


@pytest.mark.parametrize(
    ("things", "held_out", "least"), [(1, False, 0.9), (1, True, 0.85), (2, False, 0.75), (2, True, 0.6)]
)
def test_prompts_are_painted_as_they_say(pipe, things, held_out, least):
    """A small sample of what ``python -m langevin.zoo.evaluate`` measures; the true figures are in the card."""
    right = evaluate.adherence(pipe, evaluate.prompts(things, held_out, 20), steps=20, guidance=2.0)
    assert sum(right) >= least * len(right)


def test_without_the_prompt_pictures_are_not_what_it_says(pipe):
    """At a guidance scale of 1 or less pipelines ask the network once; an empty prompt then says nothing."""
    texts = evaluate.prompts(2, False, 12)
    pictures = evaluate.paint(pipe, [""] * len(texts), steps=10, guidance=1.0)
    right = [reader.matches(reader.read(p), world.parse(t)) for p, t in zip(pictures, texts, strict=True)]
    assert sum(right) <= 1


@pytest.mark.parametrize("prompt", ["", "an astronaut riding a horse", "😀", "red " * 200])
def test_any_prompt_gives_a_picture(pipe, prompt):
    image = pipe(prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (64, 64)
    assert image.mode == "RGB"


def test_unconditional_model_paints_one_or_two_things_on_a_plain_background(unconditional):
    """Many in colours of the world; their outlines are as good as its short training made them: see its card."""
    ddim = langevin.DDIMPipeline(unet=unconditional.unet, scheduler=unconditional.scheduler)
    ddim.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    made = ddim(batch_size=16, num_inference_steps=30, generator=generator, output_type="np").images
    pictures = [Image.fromarray(picture) for picture in (np.asarray(made) * 255).round().astype(np.uint8)]
    readings = [reader.read(picture.resize((64, 64), Image.Resampling.BICUBIC)) for picture in pictures]
    assert all(picture.size == (32, 32) for picture in pictures)
    assert sum(reading.background is not None for reading in readings) >= 15
    few = [reading for reading in readings if 1 <= len(reading.things) <= 2]
    assert len(few) >= 13
    assert sum(all(thing.colour for thing in reading.things) for reading in few) >= 6
