"""Inpainting as a guider: what is kept, what is made anew, what is computed, and what it stacks with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin import DDIMScheduler, DiffusionPipeline, Guider, ImageStart, Inpaint, StableDiffusionPipeline
from tests.helpers import in_threads

SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False),
    "ddim v": lambda: DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction"),
    "pndm": lambda: langevin.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
    "euler a": langevin.EulerAncestralDiscreteScheduler,
    "heun": langevin.HeunDiscreteScheduler,
    "kdpm2": langevin.KDPM2DiscreteScheduler,
    "dpm++ 2s": langevin.DPMSolverSinglestepScheduler,
    "unipc": langevin.UniPCMultistepScheduler,
    "restart": langevin.RestartScheduler,
}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def half(height=16, width=16):
    """A mask over the upper half."""
    mask = torch.zeros(1, 1, height, width)
    mask[:, :, : height // 2] = 1
    return mask


PIXELS = random(1, 3, 16, 16, seed=1).tanh()
LATENTS = random(1, 4, 8, 8, seed=2)
CALL = dict(num_inference_steps=5, output_type="latent", seed=3)


@pytest.fixture(scope="module")
def parts(tiny_sd_folder):
    return DiffusionPipeline.from_pretrained(tiny_sd_folder).components


def quiet(components, scheduler="ddim", **own):
    chosen = SCHEDULERS[scheduler]() if isinstance(scheduler, str) else scheduler
    pipe = StableDiffusionPipeline(**{**components, "scheduler": chosen, **own}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def unets(parts):
    """Networks with other numbers of input channels."""
    torch.manual_seed(0)
    config = {k: v for k, v in parts["unet"].config.items() if not k.startswith("_")}
    return {n: langevin.UNet2DConditionModel(**{**config, "in_channels": n}).eval() for n in (8, 9)}


def watch(module, into):
    """Note the shape of what a module is given first."""
    return module.register_forward_pre_hook(lambda _, given: into.append(tuple(given[0].shape)))


def made(pipe, *guiders, **more):
    return pipe("a cat", guiders=guiders, **{**CALL, **more}).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_nothing_masked_the_picture_comes_back_exactly(parts, scheduler):
    for strength in (1.0, 0.5):
        kept = made(quiet(parts, scheduler), Inpaint(LATENTS, torch.zeros(1, 1, 16, 16), strength))
        assert torch.equal(kept, LATENTS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_all_masked_it_is_text_to_image_exactly(parts, scheduler):
    pipe = quiet(parts, scheduler)
    alone = made(pipe)
    assert torch.equal(made(pipe, Inpaint(LATENTS, torch.ones(1, 1, 16, 16))), alone)
    assert not torch.equal(made(pipe, Inpaint(LATENTS, half())), alone)


@pytest.mark.parametrize("scheduler", ["ddim", "euler a", "heun", "pndm"])
def test_outside_the_mask_is_the_picture_at_the_level_of_the_next_call(parts, scheduler):
    pipe = quiet(parts, scheduler)
    seen = []

    def look(call, i, t, tensors):
        seen.append((call.setup.start + i + 1, call.setup.run, tensors["latents"]))
        return {}

    noise = random(1, 4, 8, 8, seed=9)
    made(pipe, Inpaint(LATENTS, half(), 0.8), latents=noise, callback_on_step_end=look)
    assert len(seen) > 3
    for following, run, x in seen[:-1]:
        assert torch.equal(x[:, :, 4:], run.add_noise(LATENTS, noise, following)[:, :, 4:])
    assert torch.equal(seen[-1][2][:, :, 4:], LATENTS[:, :, 4:])


def test_a_run_that_grows_on_the_way_ends_with_the_picture(parts):
    made_anew = made(quiet(parts, scheduler=langevin.DPMAdaptiveScheduler()), Inpaint(LATENTS, half()))
    assert torch.equal(made_anew[:, :, 4:], LATENTS[:, :, 4:])
    assert made_anew.isfinite().all()


def test_strength_zero_is_the_picture_and_more_goes_further(parts):
    pipe = quiet(parts)
    assert torch.equal(made(pipe, Inpaint(LATENTS, half(), 0.0)), LATENTS)
    apart = [(made(pipe, Inpaint(LATENTS, half(), s)) - LATENTS).abs().mean() for s in (0.2, 0.6, 1.0)]
    assert 0 < apart[0] < apart[1] < apart[2]


def test_grey_mixes(parts):
    pipe = quiet(parts)
    grey = made(pipe, Inpaint(LATENTS, torch.full((1, 1, 16, 16), 0.25)))
    assert (grey - LATENTS).abs().mean() < (
        made(pipe, Inpaint(LATENTS, torch.ones(1, 1, 16, 16))) - LATENTS
    ).abs().mean()


def test_a_mask_may_have_the_size_of_the_latents(parts, unets):
    small = half(8, 8)
    for pipe in (quiet(parts), quiet(parts, unet=unets[9])):
        assert torch.equal(made(pipe, Inpaint(PIXELS, small)), made(pipe, Inpaint(PIXELS, half())))


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_what_is_computed(parts, unets, guidance):
    """No more rows and calls than without it, and no picture is encoded that is not needed."""
    for channels, strength, encoded in ((4, 1.0, 1), (4, 0.6, 1), (9, 1.0, 1), (9, 0.6, 2)):
        pipe = quiet(parts, **({"unet": unets[9]} if channels == 9 else {}))
        calls, encodings = [], []
        hooks = watch(pipe.unet, calls), watch(pipe.vae.encoder, encodings)
        made(pipe, Inpaint(PIXELS, half(), strength), guidance_scale=guidance)
        for hook in hooks:
            hook.remove()
        assert calls == [(1 if guidance == 1.0 else 2, channels, 8, 8)] * int(5 * strength)
        assert len(encodings) == encoded


def test_a_network_made_for_it_is_told_mask_and_masked_picture_in_every_branch(parts, unets):
    pipe, given = quiet(parts, unet=unets[9]), []
    hook = pipe.unet.register_forward_pre_hook(lambda _, rows: given.append(rows[0].clone()))
    told = LATENTS * 0.5
    made(pipe, Inpaint(PIXELS, half(), masked_latents=told))
    hook.remove()
    for rows in given:
        for row in rows:
            assert torch.equal(row[4:5], half(8, 8)[0])
            assert torch.equal(row[5:], told[0])


def test_by_default_the_masked_picture_is_grey_under_the_mask(parts, unets):
    pipe, encoded = quiet(parts, unet=unets[9]), []
    hook = pipe.vae.encoder.register_forward_pre_hook(lambda _, pixels: encoded.append(pixels[0].clone()))
    for most in (1.0, 0.5, 0.49):
        made(pipe, Inpaint(PIXELS, most * half()))
    hook.remove()
    assert torch.equal(encoded[0], PIXELS * (half() == 0))
    assert torch.equal(encoded[1], encoded[0])
    assert torch.equal(encoded[2], PIXELS)


class Aside(Guider):
    """Asks for a branch of its own, which it adds after others have prepared."""

    def prepare(self, setup):
        setup.branches["aside"] = setup.encode_text("a dog")

    def needs(self, step):
        return ("aside",)

    def combine(self, prediction, predictions, x, step):
        assert step.predict(x, ["aside"])["aside"].shape == x.shape
        return prediction + 0.5 * (predictions["aside"] - prediction)


class Joined(Guider):
    """Joins latents to x, as editing by instruction does."""

    def prepare(self, setup):
        for name, told in setup.branches.items():
            setup.branches[name] = {**told, "channels": {"more": LATENTS}}


@pytest.mark.parametrize("order", [1, -1])
def test_branches_that_other_guiders_add_are_told_too(parts, unets, order):
    for own in ({}, {"unet": unets[9]}):
        pipe = quiet(parts, **own)
        inpaint = Inpaint(PIXELS, half())
        together = made(pipe, *[inpaint, Aside()][::order])
        assert not torch.equal(together, made(pipe, inpaint))


@pytest.mark.parametrize("order", [1, -1])
def test_it_blends_with_networks_to_whom_others_join_channels(parts, unets, order):
    pipe = quiet(parts, unet=unets[8])
    kept = made(pipe, *[Inpaint(LATENTS, half()), Joined()][::order])
    assert torch.equal(kept[:, :, 4:], LATENTS[:, :, 4:])
    with pytest.raises(ValueError, match="takes 8 channels, where x has 4"):
        made(pipe, Inpaint(LATENTS, half()))


def test_keep_outside_gives_back_the_pixels(parts):
    pipe = quiet(parts)
    free, kept = (made(pipe, Inpaint(PIXELS, half(), keep_outside=k), output_type="pt") for k in (False, True))
    torch.testing.assert_close(kept[:, :, 8:], PIXELS[:, :, 8:] / 2 + 0.5, rtol=0, atol=1e-6)
    assert torch.equal(kept[:, :, :8], free[:, :, :8])
    assert not torch.equal(kept, free)


def test_several_pictures_and_masks(parts):
    """Pictures of a batch are those that are made alone."""
    pipe = quiet(parts)
    pixels, masks = torch.cat([PIXELS, -PIXELS]), torch.cat([half(), 1 - half()])
    together = pipe(["a cat", "a dog"], guiders=[Inpaint(pixels, masks, 0.7)], **{**CALL, "seed": [3, 4]}).images
    for k, text in enumerate(("a cat", "a dog")):
        alone = pipe(
            text, guiders=[Inpaint(pixels[k : k + 1], masks[k : k + 1], 0.7)], **{**CALL, "seed": 3 + k}
        ).images
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [4, 9])
def test_threads_share_one_guider(parts, unets, channels):
    pipe = quiet(parts, **({"unet": unets[9]} if channels == 9 else {}))
    guider = Inpaint(PIXELS, half(), 0.8)
    alone = [made(pipe, guider, seed=k) for k in range(4)]
    for one, other in zip(alone, in_threads(lambda k: made(pipe, guider, seed=k), 4), strict=True):
        assert torch.equal(one, other)


def test_it_runs_under_inference_mode(parts, unets):
    pipe = quiet(parts, unet=unets[9])
    with torch.inference_mode():
        quick = made(pipe, Inpaint(PIXELS, half()))
    assert torch.equal(quick, made(pipe, Inpaint(PIXELS, half())))


def test_its_plain_settings_are_recorded(parts):
    picture = made(quiet(parts), Inpaint(PIXELS, half(), 0.8), output_type="pil")[0]
    assert {"class": "Inpaint", "strength": 0.8, "keep_outside": False}.items() <= picture.settings["guiders"][
        0
    ].items()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Inpaint(PIXELS, half()[0]), r"mask is \(1, 16, 16\); \(masks, 1, height, width\)"),
        (lambda: Inpaint(PIXELS, PIXELS), r"mask is \(1, 3, 16, 16\)"),
        (lambda: Inpaint(PIXELS, half() * 255), r"0 to 255; it must be in 0\.\.1"),
        (lambda: Inpaint(PIXELS, half() * float("nan")), "without NaN"),
        (lambda: Inpaint(PIXELS, half(), -0.1), "strength is -0.1"),
        (lambda: Inpaint(PIXELS[..., :8], half()), "to be made are 16 x 16"),
        (lambda: Inpaint(LATENTS, half(), keep_outside=True), "keep_outside needs the picture's pixels"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(parts, make, says):
    with pytest.raises(ValueError, match=says) as caught:
        made(quiet(parts), make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [1, -1])
def test_two_starts_are_refused(parts, order):
    with pytest.raises(ValueError, match="two guiders want to choose where the run begins"):
        made(quiet(parts), *[Inpaint(PIXELS, half()), ImageStart(PIXELS)][::order])


def test_latents_alone_do_for_a_plain_network_and_not_for_one_made_for_it(parts, unets):
    assert np.isfinite(made(quiet(parts), Inpaint(LATENTS, half())).numpy()).all()
    with pytest.raises(ValueError, match="give masked_latents too"):
        made(quiet(parts, unet=unets[9]), Inpaint(LATENTS, half()))


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (1, 1, 0, 8), (1, 2, 8, 8), (8, 8)])
def test_masks_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"mask is .*\(masks, 1, height, width\) is needed"):
        Inpaint(torch.zeros(1, 3, 16, 16), torch.zeros(shape))
