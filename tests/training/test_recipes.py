"""Every recipe on the model in the box: it runs, goes on after a kill, and writes what both libraries read."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from safetensors.torch import load_file

import langevin
from langevin import DiffusionPipeline
from langevin.checkpoints.folders import BOX
from langevin.training.data import Draws, Stream, collate
from langevin.training.flags import BadFlags, made
from langevin.training.loop import train
from langevin.training.recipes import RECIPES, recipe_class
from langevin.training.report import read_table
from langevin.zoo.world import random_scene, render, training_caption

SHARED = dict(
    pretrained_model_name_or_path="langevin/shapes",
    resolution=32,
    train_batch_size=2,
    max_train_steps=4,
    learning_rate=1e-3,
    lr_warmup_steps=0,
    checkpointing_steps=2,
    report_to="none",
    seed=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with a column for every recipe, and folders of a subject and of its class."""
    datasets = pytest.importorskip("datasets")
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(1)
    scenes = [random_scene(rng) for _ in range(8)]
    images = [Image.fromarray(one) for one in render(scenes)]
    columns = {
        "image": images,
        "conditioning_image": [image.filter(ImageFilter.FIND_EDGES) for image in images],
        "input_image": images,
        "edited_image": [ImageOps.invert(image) for image in images],
        "text": [training_caption(scene, rng) for scene in scenes],
        "edit_prompt": ["the other way round"] * 8,
    }
    texts = ("text", "edit_prompt")
    kinds = {name: datasets.Value("string") if name in texts else datasets.Image() for name in columns}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).save_to_disk(folder / "table")
    for name, some in (("subject", images[:3]), ("class", images[3:])):
        (folder / name).mkdir()
        for k, image in enumerate(some):
            image.save(folder / name / f"{k}.png")
    return folder


def flags_for(name, data):
    return {
        "unconditional": dict(train_data_dir=str(data / "subject"), model_config_name_or_path=str(data / "net")),
        "text_to_image": dict(dataset_name=str(data / "table"), center_crop=True),
        "lora": dict(dataset_name=str(data / "table"), center_crop=True),
        "dreambooth": dict(
            instance_data_dir=str(data / "subject"),
            instance_prompt="a circle of mine",
            with_prior_preservation=True,
            class_data_dir=str(data / "class"),
            class_prompt="a circle",
            num_class_images=5,
            train_text_encoder=True,
            snr_gamma=5.0,
        ),
        "textual_inversion": dict(
            train_data_dir=str(data / "subject"), placeholder_token="<mine>", initializer_token="circle", num_vectors=2
        ),
        "custom_diffusion": dict(
            instance_data_dir=str(data / "subject"),
            instance_prompt="a <new1> circle",
            modifier_token="<new1>",
            with_prior_preservation=True,
            class_data_dir=str(data / "class"),
            class_prompt="a circle",
            num_class_images=5,
            hflip=True,
        ),
        "controlnet": dict(dataset_name=str(data / "table"), proportion_empty_prompts=0.3),
        "instruct_pix2pix": dict(dataset_name=str(data / "table"), conditioning_dropout_prob=0.1, random_flip=True),
    }[name]


def recipe(name, data, out, **more):
    kind = recipe_class(name)
    (data / "net").mkdir(exist_ok=True)
    if name == "unconditional" and not (data / "net/config.json").exists():
        sizes = dict(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1)
        langevin.UNet2DModel(
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, sample_size=32, **sizes
        ).save_config(data / "net")
    known = {field.name for field in dataclasses.fields(kind.flags_class)}
    values = {**SHARED, **flags_for(name, data), "output_dir": str(out), **more}
    return kind(made(kind.flags_class, {key: value for key, value in values.items() if key in known}))


def losses(folder):
    return [row["loss"] for row in read_table(folder / "logs/metrics.csv")]


def test_every_recipe_is_tested_here(data):
    assert all(flags_for(name, data) for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_is_the_unbroken_one(name, data, tmp_path):
    more = dict(num_epochs=2, ddpm_num_inference_steps=2, eval_batch_size=1) if name == "unconditional" else {}
    train(recipe(name, data, tmp_path / "whole", **more))
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole/checkpoint-2").rename(tmp_path / "broken/checkpoint-2")
    train(recipe(name, data, tmp_path / "broken", resume_from_checkpoint="latest", **more))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")[2:]
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob("**/*.safetensors"))
    files = [file for file in files if not file.parts[0].startswith("checkpoint")]
    assert files
    for file in files:
        one, other = load_file(tmp_path / "whole" / file), load_file(tmp_path / "broken" / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file


def first_batch(own):
    own.check()
    rows = own.rows()
    networks = own.load()
    stream = Stream(rows, own.example, 1)
    batch = collate([stream[place] for place in range(3)])
    return networks, batch, Draws(1, batch.pop("place"))


# -- LoRA


def test_a_lora_begins_as_nothing_and_is_read_by_both_libraries(data, tmp_path):
    import diffusers

    own = recipe("lora", data, tmp_path / "begun")
    networks, batch, draws = first_batch(own)
    plain = recipe("text_to_image", data, tmp_path / "plain")
    networks_of_all, same_batch, same_draws = first_batch(plain)
    with torch.no_grad():
        torch.testing.assert_close(
            own.loss(networks, batch, draws), plain.loss(networks_of_all, same_batch, same_draws)
        )
    train(recipe("lora", data, tmp_path / "out", learning_rate=1e-2))
    pictures = []
    for library in (langevin, diffusers):
        pipe = library.StableDiffusionPipeline.from_pretrained(BOX / "shapes", torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        before = pipe.unet(torch.ones(1, 4, 16, 16), 500, torch.ones(1, 8, 128)).sample
        pipe.load_lora_weights(str(tmp_path / "out"))
        after = pipe.unet(torch.ones(1, 4, 16, 16), 500, torch.ones(1, 8, 128)).sample
        assert (after - before).abs().max() > 1e-4
        pictures.append(after.detach())
    torch.testing.assert_close(*pictures, atol=1e-5, rtol=1e-5)


def test_a_lora_is_clipped(data, tmp_path):
    """In the reference it never is."""
    for limit in (1e-9, 1.0):
        train(recipe("lora", data, tmp_path / str(limit), max_grad_norm=limit, adam_epsilon=1e-3, max_train_steps=2))
    up = {
        limit: sum(
            w.abs().sum() for key, w in load_file(tmp_path / str(limit) / "pytorch_lora_weights.safetensors").items()
            if ".up." in key
        )
        for limit in (1e-9, 1.0)
    }  # fmt: skip
    assert up[1e-9] < 0.01 * up[1.0]


# -- DreamBooth


def test_prior_preservation_adds_the_loss_on_the_class(data, tmp_path):
    def loss(**more):
        own = recipe("dreambooth", data, tmp_path, train_text_encoder=False, snr_gamma=None, **more)
        networks, batch, draws = first_batch(own)
        with torch.no_grad():
            return own.loss(networks, batch, draws)

    alone, once, twice = (loss(prior_loss_weight=weight) for weight in (0.0, 1.0, 2.0))
    torch.testing.assert_close(twice - once, once - alone, rtol=1e-3, atol=1e-4)
    assert ((once - alone) > 1e-3).all()


def test_class_pictures_that_are_missing_are_made_once(data, tmp_path):
    folder = tmp_path / "class"
    for _ in range(2):
        own = recipe("dreambooth", data, tmp_path, class_data_dir=str(folder), num_class_images=2)
        own.check()
        own.rows()
        own.load()
    assert len(list(folder.iterdir())) == 2
    assert len({path.read_bytes() for path in folder.iterdir()}) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(class_prompt=None), "--class_prompt"),
        (dict(pre_compute_text_embeddings=True), "--train_text_encoder"),
        (dict(class_labels_conditioning="timesteps"), "--class_labels_conditioning"),
        (dict(instance_data_dir="/nowhere"), "/nowhere"),
    ],
)
def test_what_dreambooth_cannot_do_is_told_at_once(data, tmp_path, more, said):
    with pytest.raises(BadFlags, match=said):
        recipe("dreambooth", data, tmp_path, **more).check()


# -- textual inversion


def test_only_the_new_rows_move_and_both_libraries_read_the_word(data, tmp_path):
    import diffusers

    train(recipe("textual_inversion", data, tmp_path, save_as_full_pipeline=True, adam_weight_decay=0.1, save_steps=3))
    before = DiffusionPipeline.from_pretrained("langevin/shapes").text_encoder.get_input_embeddings().weight
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    after = pipe.text_encoder.get_input_embeddings().weight
    assert len(after) == len(before) + 2
    assert torch.equal(after[:-2].float(), before.float())
    learned = load_file(tmp_path / "learned_embeds.safetensors")["<mine>"]
    torch.testing.assert_close(after[-2:].float(), learned)
    circle = pipe.tokenizer.encode("circle", add_special_tokens=False)[0]
    assert not torch.equal(learned[0], before[circle].float())
    assert (tmp_path / "learned_embeds-steps-3.safetensors").exists()
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(BOX / "shapes", torch_dtype=torch.float32)
    theirs.load_textual_inversion(str(tmp_path), weight_name="learned_embeds.safetensors")
    torch.testing.assert_close(theirs.text_encoder.get_input_embeddings().weight[-2:].detach(), learned)


def test_a_word_that_is_several_tokens_cannot_be_begun_with(data, tmp_path):
    with pytest.raises(BadFlags, match="tokens"):
        first_batch(recipe("textual_inversion", data, tmp_path, initializer_token="red circle"))


# -- Custom Diffusion


def test_only_keys_values_and_the_word_move(data, tmp_path):
    import diffusers

    train(recipe("custom_diffusion", data, tmp_path))
    name = "pytorch_custom_diffusion_weights.safetensors"
    held = load_file(tmp_path / name)
    assert held
    assert all(
        key.endswith((".processor.to_k_custom_diffusion.weight", ".to_v_custom_diffusion.weight")) for key in held
    )
    x, states = torch.ones(1, 4, 16, 16), torch.randn(1, 8, 128, generator=torch.Generator().manual_seed(0))
    said = []
    for library in (langevin, diffusers):
        pipe = library.StableDiffusionPipeline.from_pretrained(BOX / "shapes", torch_dtype=torch.float32)
        before = pipe.unet(x, 500, states).sample
        if library is langevin:
            pipe.unet.load_attn_procs(str(tmp_path), weight_name=name)
        else:  # whose own load_attn_procs loads nothing of such a file where PEFT is installed, and does not say so
            layers = {key.replace(".processor", "").replace("_custom_diffusion", ""): one for key, one in held.items()}
            assert not pipe.unet.load_state_dict(layers, strict=False).unexpected_keys
        pipe.load_textual_inversion(str(tmp_path), weight_name="<new1>.safetensors")
        said += [pipe.unet(x, 500, states).sample.detach()]
        assert (said[-1] - before).abs().max() > 1e-5
        assert len(pipe.tokenizer("a <new1> circle", add_special_tokens=False).input_ids) == 3
    torch.testing.assert_close(*said, atol=1e-5, rtol=1e-5)
    fresh = langevin.StableDiffusionPipeline.from_pretrained("langevin/shapes").unet
    own = langevin.StableDiffusionPipeline.from_pretrained("langevin/shapes", torch_dtype=torch.float32).unet
    own.load_attn_procs(str(tmp_path), weight_name=name)
    moved = [key for key, w in own.named_parameters() if not torch.equal(w, fresh.get_parameter(key).float())]
    assert len(moved) == len(held)


def test_several_concepts_and_real_pictures_of_a_class(data, tmp_path):
    import json

    real = tmp_path / "real"
    (real / "images").mkdir(parents=True)
    for path in (data / "class").iterdir():
        (real / "images" / path.name).write_bytes(path.read_bytes())
    names = sorted(path.name for path in (real / "images").iterdir())
    (real / "images.txt").write_text("\n".join(f"images/{name}" for name in names))
    (real / "caption.txt").write_text("\n".join(f"a thing {k}" for k in range(len(names))))
    folders = dict(instance_data_dir=str(data / "subject"), class_data_dir=str(real))
    listed = [dict(instance_prompt=f"a <new{k}>", class_prompt="a thing", **folders) for k in (1, 2)]
    (tmp_path / "concepts.json").write_text(json.dumps(listed))
    more = dict(concepts_list=str(tmp_path / "concepts.json"), modifier_token="<new1>+<new2>", real_prior=True)
    own = recipe("custom_diffusion", data, tmp_path / "out", freeze_model="crossattn", noaug=True, **more)
    networks, batch, draws = first_batch(own)
    assert len(own.rows()) == 6
    assert batch["class_text"][0].startswith("a thing ")
    assert own.loss(networks, batch, draws).shape == (3,)
    train(recipe("custom_diffusion", data, tmp_path / "out", freeze_model="crossattn", **more))
    assert {path.name for path in (tmp_path / "out").glob("<new*")} == {"<new1>.safetensors", "<new2>.safetensors"}
    assert any(
        "to_out_custom_diffusion.0.bias" in key
        for key in load_file(tmp_path / "out/pytorch_custom_diffusion_weights.safetensors")
    )


def test_scaled_pictures_are_masked_where_they_are_not():
    from langevin.training.classes import scaled

    image, seen = Image.new("RGB", (40, 40), (255, 0, 0)), set()
    for k in range(60):
        pixels, mask, said = scaled(image, 64, 4, random.Random(k))
        assert pixels.shape == (3, 64, 64)
        under = torch.nn.functional.interpolate(mask[None], (64, 64))[0, 0].bool()
        assert under.any()
        assert (pixels[0][under] == 1).all()
        seen.add(said.strip())
    assert seen == {"", "a far away", "very small", "zoomed in", "close up"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(modifier_token="<a>+<b>+<c>+<d>"), "--modifier_token has 4"),
        (dict(concepts_list="/nowhere.json"), "/nowhere.json"),
        (dict(instance_prompt=""), "--instance_prompt"),
        (dict(class_prompt=None), "--class_prompt"),
        (dict(no_safe_serialization=True), "--no_safe_serialization"),
    ],
)
def test_what_custom_diffusion_cannot_do_is_told_at_once(data, tmp_path, more, said):
    with pytest.raises(BadFlags, match=said):
        recipe("custom_diffusion", data, tmp_path, **more).check()


# -- ControlNet


def test_a_control_net_begins_as_nothing_and_learns(data, tmp_path):
    own = recipe("controlnet", data, tmp_path / "begun", proportion_empty_prompts=0.0)
    networks, batch, draws = first_batch(own)
    plain = recipe("text_to_image", data, tmp_path / "plain", image_interpolation_mode="bilinear")
    others = first_batch(plain)
    with torch.no_grad():
        torch.testing.assert_close(own.loss(networks, batch, draws), plain.loss(*others))
    assert batch["shown"].min() >= 0
    assert batch["shown"].max() <= 1
    train(recipe("controlnet", data, tmp_path / "out"))
    net = langevin.ControlNetModel.from_pretrained(tmp_path / "out")
    assert any(layer.weight.abs().max() > 0 for layer in net.controlnet_down_blocks)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (dict(resolution=36), "multiple of 8"),
        (dict(validation_image=["x"]), "--validation_prompt"),
        (dict(validation_image=["/no.png"], validation_prompt=["a"]), "/no.png is no file"),
        (dict(conditioning_image_column="hints"), "--conditioning_image_column"),
    ],
)
def test_what_controlnet_cannot_do_is_told_at_once(data, tmp_path, more, said):
    own = recipe("controlnet", data, tmp_path, **more)

    def begin():
        own.check()
        own.rows()

    with pytest.raises(BadFlags, match=said):
        begin()


# -- InstructPix2Pix


def test_the_widened_network_is_at_first_the_one_it_came_from(data, tmp_path):
    """Its bias too, which the reference loses."""
    networks, _batch, _draws = first_batch(recipe("instruct_pix2pix", data, tmp_path))
    unet, old = networks["unet"], DiffusionPipeline.from_pretrained("langevin/shapes").unet.float()
    x, states = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 128)
    shown = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(unet.eval()(torch.cat([x, shown], 1), 9, states).sample, old(x, 9, states).sample)
    assert unet.config.in_channels == 8
    assert torch.equal(unet.conv_in.bias, old.conv_in.bias)


def test_instructions_go_on_from_a_model_that_follows_some(data, tmp_path):
    model = dict(pretrained_model_name_or_path="langevin/shapes-instruct")
    networks, *_ = first_batch(recipe("instruct_pix2pix", data, tmp_path, **model))
    known = DiffusionPipeline.from_pretrained("langevin/shapes-instruct").unet
    assert torch.equal(networks["unet"].conv_in.weight, known.conv_in.weight.float())


def test_both_pictures_of_a_pair_have_one_frame(data, tmp_path):
    own = recipe("instruct_pix2pix", data, tmp_path)
    _, batch, _ = first_batch(own)
    edited, original = batch["pixels"].unbind(1)
    torch.testing.assert_close(edited, -original, atol=0.02, rtol=0)


def test_text_and_picture_are_left_out_as_often_as_said(data, tmp_path):
    own = recipe("instruct_pix2pix", data, tmp_path, conditioning_dropout_prob=0.2)
    _networks, batch, _ = first_batch(own)
    seen = {"text": 0, "picture": 0, "both": 0, "rows": 0}
    read = own.read

    def watched(texts, *more):
        own.said = [not text for text in texts]
        return read(texts, *more)

    class Watched(torch.nn.Module):
        def forward(self, x, t, states):
            gone = [bool((row == 0).all()) for row in x[:, 4:]]
            seen["rows"] += len(gone)
            for text, shown in zip(own.said, gone, strict=True):
                seen["text"] += text
                seen["picture"] += shown
                seen["both"] += text and shown
            return type("Output", (), {"sample": x[:, :4]})

    own.read, own.texts = watched, {}
    for k in range(100):
        own.loss({"unet": Watched()}, batch, Draws(k, [0, 1, 2]))
    shares = {name: count / seen["rows"] for name, count in seen.items()}
    assert shares["text"] == pytest.approx(0.4, abs=0.08)
    assert shares["picture"] == pytest.approx(0.4, abs=0.08)
    assert shares["both"] == pytest.approx(0.2, abs=0.06)


def test_the_result_edits_pictures(data, tmp_path):
    train(recipe("instruct_pix2pix", data, tmp_path, max_train_steps=1))
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe).__name__ == "StableDiffusionInstructPix2PixPipeline"
    image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    assert pipe("x", image, num_inference_steps=1).images[0].size == (32, 32)


# -- unconditional


def test_the_unconditional_result_is_a_pipeline(data, tmp_path):
    import diffusers

    more = dict(num_epochs=1, ddpm_num_inference_steps=2, eval_batch_size=2, use_ema=True)
    train(recipe("unconditional", data, tmp_path, **more))
    assert (tmp_path / "validation/sheet.png").exists()
    ours, theirs = (library.DDPMPipeline.from_pretrained(tmp_path) for library in (langevin, diffusers))
    for name, weight in theirs.unet.state_dict().items():
        torch.testing.assert_close(ours.unet.state_dict()[name], weight)
