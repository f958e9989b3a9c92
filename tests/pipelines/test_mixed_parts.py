"""Parts, latents and embeddings of several dtypes in one call: each is brought to where it is needed."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import langevin
from langevin import ClassifierFreeGuidance, Control, ControlNetModel

STEPS = dict(num_inference_steps=3, seed=7, output_type="pt", guidance_scale=2.0)


def loaded(name="langevin/shapes", cls=langevin.DiffusionPipeline, **dtypes):
    pipe = cls.from_pretrained(name, torch_dtype={"default": torch.float32, **dtypes})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def plain():
    return loaded()("a red circle", **STEPS).images


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_each_part_works_in_its_own_dtype(plain, part):
    pipe = loaded(**{part: torch.bfloat16})
    assert getattr(pipe, part).dtype == torch.bfloat16
    made = pipe("a red circle", **STEPS).images
    torch.testing.assert_close(made.float(), plain, atol=0.15, rtol=0)  # bfloat16 has three digits
    assert (made.float() - plain).abs().mean() < 0.02


def test_a_vae_is_brought_to_single_precision_by_itself(plain):
    pipe = loaded().to(torch.bfloat16)
    pipe.vae.to(torch.float32)
    made = pipe("a red circle", **STEPS).images
    assert made.dtype == torch.float32
    assert (made - plain).abs().mean() < 0.05


def test_pictures_reach_parts_of_other_dtypes():
    grey, mask = Image.new("RGB", (64, 64), "grey"), Image.new("L", (64, 64), 255)
    inpaint = loaded("langevin/shapes-inpainting", unet=torch.bfloat16)
    assert inpaint("a red circle", image=grey, mask_image=mask, **STEPS).images.isfinite().all()
    instruct = loaded("langevin/shapes-instruct", unet=torch.bfloat16)
    assert instruct("make it red", image=grey, **STEPS).images.isfinite().all()
    outline = ControlNetModel.from_pretrained("langevin/shapes-outline")  # in float32, beside a network in bfloat16
    start = langevin.StableDiffusionImg2ImgPipeline.from_pipe(loaded(unet=torch.bfloat16))
    start.set_progress_bar_config(disable=True)
    assert start("a star", image=grey, control=[Control(outline, grey)], **STEPS).images.isfinite().all()


def test_latents_and_embeddings_of_another_dtype(plain):
    pipe = loaded()
    side = pipe.unet.config.sample_size
    latents = torch.randn(1, pipe.vae.config.latent_channels, side, side, generator=torch.Generator().manual_seed(7))
    embeds, negative = pipe.encode_prompt("a red circle")
    made = pipe(
        prompt_embeds=embeds.double(), negative_prompt_embeds=negative.half(), latents=latents.double(), **STEPS
    ).images
    torch.testing.assert_close(made, plain, atol=1e-3, rtol=0)


def test_guidance_without_a_negative_branch_is_one_line():
    pipe = langevin.DDIMPipeline.from_pretrained("langevin/shapes-unconditional")
    with pytest.raises(
        ValueError, match="asks for the branch 'negative', which this call does not have; it has: posit"
    ):
        pipe(num_inference_steps=2, guiders=[ClassifierFreeGuidance(3.0)])
