"""Attend-and-excite against the reference."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
    pipeline_stable_diffusion_attend_and_excite as reference,
)

from tests.pipelines.family_checks import assert_checkpoints_go_both_ways, assert_same, generator, images

NAME = ("StableDiffusionAttendAndExcitePipeline", reference.StableDiffusionAttendAndExcitePipeline)
# two refinements, a move, nothing, a refinement that is never enough
CALL = dict(token_indices=[1, 3], num_inference_steps=4, max_iter_to_alter=2, attn_res=(8, 8))
CALL |= dict(thresholds={0: 0.105, 3: 0.13})


@pytest.fixture
def pair(twins):
    return lambda **options: twins(NAME, **options)


@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [
        ("sd1", "ddim"),
        ("sd1", "ddim old config"),
        ("sd1", "pndm"),
        ("sd1", "lms"),
        ("sd2", "pndm prk"),
        ("sd2", "ddim v trailing"),
        ("sd2", "ddpm"),
        ("sd2", "dpm++ 2m karras"),
    ],
)
def test_pictures_are_the_reference_ones(pair, unet, scheduler):
    assert_same(pair(unet=unet, scheduler=scheduler), "a cat", **CALL)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(attn_res=(4, 4)),
        dict(scale_factor=5, max_iter_to_alter=1),
        dict(max_iter_to_alter=0, thresholds={}),
        dict(negative_prompt="ugly", num_images_per_prompt=2),
        dict(eta=0.8),
        dict(clip_skip=1),
        dict(height=24, width=16, attn_res=(12, 8)),
        dict(height=24, width=16, attn_res=(8, 12)),  # the reference's own way to look at them
        dict(prompt=["a cat", "a dog"], token_indices=[[1, 3], [4]], generator=lambda: [generator(1), generator(2)]),
        dict(latents=torch.randn(1, 4, 8, 8, generator=generator(3))),
    ],
    ids=lambda o: ",".join(f"{k}={v}" if not callable(v) and k != "latents" else k for k, v in o.items()),
)
def test_options_give_the_reference_numbers(pair, options):
    assert_same(pair(), **{"prompt": "a cat", **CALL, **options})


def test_the_default_resolution_and_embeddings_in_place_of_prompts(pair):
    both = pair()
    embeds = [torch.randn(1, 16, 24, generator=generator(k)) for k in range(2)]
    call = {**CALL, "prompt": None, "prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}
    del call["attn_res"]  # 16 x 16: that of these latents
    assert_same(both, **call, height=32, width=32)


def test_the_old_callback_sees_what_the_reference_shows_it(pair):
    seen: list[list] = [[], []]
    for pipe, log in zip(pair(), seen, strict=True):

        def look(i, t, latents, log=log):
            log.append((i, int(t), latents.clone()))

        images(pipe, "a cat", callback=look, **{**CALL, "thresholds": {}})
    assert [entry[:2] for entry in seen[0]] == [entry[:2] for entry in seen[1]]
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours[2], theirs[2], atol=1e-4, rtol=1e-4)


def test_checkpoints_go_both_ways(pair, tmp_path):
    assert_checkpoints_go_both_ways(pair(), tmp_path, **{**CALL, "thresholds": {}})


def test_indices_are_the_reference_ones_and_know_of_weights_and_windows(pair):
    ours, theirs = pair()
    assert ours.get_indices("a cat") == theirs.get_indices("a cat")
    assert list(ours.get_indices("a cat").values()) == ["<|startoftext|>", "a</w>", "c", "a", "t</w>", "<|endoftext|>"]
    assert ours.get_indices("a++ cat") == ours.get_indices("(a)1.3 cat") == ours.get_indices("a cat")
    assert ours.get_indices("a (cat:1.2)", "a1111") == ours.get_indices("a cat")
    long = ours.get_indices("a b c d e f g h i j k l m n x y")
    assert (long[14], long[15], long[16], long[17]) == ("n</w>", "<|endoftext|>", "<|startoftext|>", "x</w>")
    with pytest.raises(ValueError, match="several texts"):
        ours.get_indices('("a cat", "a dog").blend(1, 1)')


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(token_indices=None), r"token_indices is \(\)"),
        (dict(token_indices=["cat"]), "whole numbers"),
        (dict(token_indices=[1, [2]]), "whole numbers"),
        (dict(token_indices=[[1], [2]]), "2 lists for 1 prompts"),
        (dict(token_indices=[0]), "places 1 to 14"),
        (dict(token_indices=[15]), "places 1 to 14"),
        (dict(attn_res=(16, 16)), r"sees 16 x 16 places \(attn_res\); there are 8 x 8, 4 x 4"),
        (dict(attn_res=None, height=32, width=64), "sees 8 x 4 places"),  # width first, as the reference has it
        (dict(attn_res=(1, 64)), "at least 2"),
        (dict(scale_factor=-1), "at least 0"),
        (dict(thresholds={0: 1.5}), "0..1"),
    ],
    ids=lambda o: str(o) if isinstance(o, dict) else "",
)
def test_bad_input_gets_one_clear_line(pair, options, says):
    ours, _ = pair()
    with pytest.raises(ValueError, match=says) as caught:
        ours("a cat", **{**CALL, **options})
    assert "\n" not in str(caught.value)


def test_inference_mode_gets_one_clear_line(pair):
    ours, _ = pair()
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode forbids"):
        ours("a cat", **CALL)
