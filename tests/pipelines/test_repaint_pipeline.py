"""RePaintPipeline against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import langevin
from tests.pipelines.family_checks import UNCONDITIONAL, mask, picture, pil
from tests.pipelines.family_checks import images as images_of

SHORT = dict(num_inference_steps=6, jump_length=2, jump_n_sample=2)
KEEP = torch.zeros(1, 1, 16, 16)
KEEP[..., :10] = 1
SIGNED = 2 * picture(16, 16, count=1) - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import diffusers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("repaint")
    pipe = diffusers.RePaintPipeline(diffusers.UNet2DModel(**UNCONDITIONAL).eval(), diffusers.RePaintScheduler())
    pipe.save_pretrained(folder)
    return folder


def both(folder, **config):
    import diffusers

    pipes = []
    for library in (langevin, diffusers):
        unet = library.UNet2DModel.from_pretrained(folder, subfolder="unet")
        pipe = library.RePaintPipeline(unet, library.RePaintScheduler(**config))
        pipe.set_progress_bar_config(disable=True)
        pipes.append(pipe)
    return pipes


@pytest.mark.parametrize(
    ("config", "call"),
    [
        ({}, {}),
        ({}, dict(eta=1.0)),
        ({}, dict(num_inference_steps=9, jump_length=3, jump_n_sample=3, eta=0.5)),
        ({}, dict(num_inference_steps=5, jump_length=10)),
        (dict(clip_sample=False, beta_schedule="squaredcos_cap_v2"), {}),
        (dict(eta=1.0, num_train_timesteps=100), dict(eta=0.0)),
        ({}, dict(mask_image=0.6 * KEEP)),
        ({}, dict(image=2 * picture(24, 40, count=1) - 1, mask_image=torch.ones(1, 1, 24, 40))),
        ({}, dict(image=torch.cat([SIGNED, -SIGNED]), mask_image=KEEP.expand(2, 1, 16, 16))),
    ],
    ids=str,
)
def test_pictures_are_the_reference_ones(folder, config, call):
    call = {"image": SIGNED, "mask_image": KEEP, **SHORT, **call}
    ours, theirs = (images_of(pipe, **call) for pipe in both(folder, **config))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_files_are_read_as_the_reference_does(folder):
    """Of sizes that it can: multiples of 32."""
    given = pil(32, 64), mask(32, 64, (5, 5, 40, 20)).point(lambda value: 150 if value else 100)
    ours, theirs = (images_of(pipe, *given, **SHORT) for pipe in both(folder))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert images_of(both(folder)[0], pil(20, 28), mask(20, 28, (2, 2, 9, 9)), **SHORT).shape == (1, 16, 24, 3)


def test_what_is_kept_stays_and_the_rest_is_made(folder):
    made = torch.from_numpy(images_of(both(folder)[0], SIGNED, KEEP, **SHORT))[0].permute(2, 0, 1)
    wanted = SIGNED[0] / 2 + 0.5
    torch.testing.assert_close(made[..., :10], wanted[..., :10], atol=1e-5, rtol=0)
    assert (made[..., 10:] - wanted[..., 10:]).abs().mean() > 0.1


def test_folders_go_both_ways_and_any_scheduler_is_turned_into_its_own(folder, tmp_path):
    import diffusers

    read = langevin.DiffusionPipeline.from_pretrained(folder)
    assert type(read) is langevin.RePaintPipeline
    read.set_progress_bar_config(disable=True)
    expected = images_of(read, SIGNED, KEEP, **SHORT)
    read.save_pretrained(tmp_path)
    back = diffusers.RePaintPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(images_of(back, SIGNED, KEEP, **SHORT), expected, atol=1e-4)
    pipe = langevin.RePaintPipeline(read.unet, langevin.DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    assert type(pipe.scheduler) is langevin.RePaintScheduler
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"


def test_a_picture_is_what_it_is_alone_and_can_be_made_again(folder, tmp_path, monkeypatch):
    from langevin.cli.again import again

    pipe = langevin.RePaintPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    given = [pil(16, 16), pil(16, 16, seed=1)], [mask(), mask(box=(0, 0, 8, 16))]
    call = dict(**SHORT, eta=1.0, as_published=True)
    made = pipe(*given, seed=[4, 9], **call).images
    alone = pipe(given[0][1], given[1][1], seed=9, **call).images[0]
    assert np.abs(np.asarray(made[1], int) - np.asarray(alone, int)).max() <= 1
    monkeypatch.chdir(tmp_path)
    made[1].save("made.png")
    again(tmp_path / "made.png", out=None, model=None, device="cpu", force=False, yes=True)
    one, two = (np.asarray(Image.open(name), int) for name in ("made.png", "made-again.png"))
    assert np.abs(one - two).max() <= 1
    assert made[1].settings["jump_length"] == 2
    theirs = pipe(*given, seed=[4, 9], **{**call, "as_published": False}).images
    assert np.abs(np.asarray(theirs[1], int) - np.asarray(alone, int)).max() > 8


def test_callbacks_see_every_call_and_may_end_the_run(folder):
    pipe, seen = both(folder)[0], []

    def stop(call, i, t, tensors):
        seen.append(int(t))
        call._interrupt = len(seen) == 3

    pipe(SIGNED, KEEP, **SHORT, callback_on_step_end=stop)
    assert len(seen) == 3
    seen.clear()
    pipe(SIGNED, KEEP, **SHORT, callback_on_step_end=lambda call, i, t, tensors: seen.append(int(t)))
    assert len(seen) > 6  # it goes back up


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, KEEP), "image is missing"),
        ((SIGNED, None), "mask_image is missing"),
        ((SIGNED, KEEP.expand(3, 1, 16, 16)), "3 masks for 1 pictures"),
        ((SIGNED, KEEP + 1), "mask_image"),
    ],
)
def test_a_mistake_is_answered_in_one_line(folder, given, message):
    with pytest.raises(ValueError, match=message):
        both(folder)[0](*given, **SHORT)
