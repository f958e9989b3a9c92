"""Consistency models against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from langevin import DiffusionPipeline
from tests.pipelines.again_checks import assert_made_again
from tests.pipelines.family_checks import assert_same, generator, images
from tests.prompts.readers_parts import random

STAGES = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
SIZES = dict(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8)
IMAGENET = dict(num_class_embeds=7, resnet_time_scale_shift="scale_shift", downsample_type="resnet")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function (networks, settings of the scheduler) -> (our pipeline, the reference's)."""
    import diffusers

    made = {}

    def make(classes=False, **plan):
        if (classes, *plan.items()) not in made:
            folder = tmp_path_factory.mktemp("consistency")
            net = random(diffusers.UNet2DModel(**STAGES, **SIZES, **(IMAGENET if classes else {})))
            theirs = diffusers.ConsistencyModelPipeline(net, diffusers.CMStochasticIterativeScheduler(**plan))
            theirs.save_pretrained(folder)
            made[(classes, *plan.items())] = DiffusionPipeline.from_pretrained(folder), theirs
        for pipe in made[(classes, *plan.items())]:
            pipe.set_progress_bar_config(disable=True)
        return made[(classes, *plan.items())]

    return make


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(batch_size=2, num_inference_steps=2),
        dict(num_inference_steps=4),
        dict(timesteps=[22, 0]),
        dict(timesteps=[30, 17, 5, 0], batch_size=2),
        dict(latents=torch.randn(1, 3, 8, 8, generator=generator(3)), num_inference_steps=2),
        dict(batch_size=2, generator=lambda: [generator(1), generator(2)], num_inference_steps=3),
    ],
    ids=lambda o: ",".join(o) or "one step",
)
@pytest.mark.parametrize("plan", [{}, dict(num_train_timesteps=201, clip_denoised=False, sigma_max=40.0)], ids=len)
def test_pictures_are_the_references(make, options, plan):
    assert_same(make(**plan), **options)


@pytest.mark.parametrize("labels", [[3, 5], torch.tensor([6, 0])], ids=["list", "tensor"])
def test_classes_are_the_references(make, labels):
    both = make(classes=True)
    assert_same(both, batch_size=2, class_labels=labels, num_inference_steps=2)
    assert_same(both, class_labels=4)
    ours, _ = both
    apart = images(ours, class_labels=4, seed=3) - images(ours, class_labels=5, seed=3)
    assert abs(apart).max() > 1e-3
    one = images(ours, batch_size=2, class_labels=4, seed=3)  # one for all
    np.testing.assert_array_equal(one, images(ours, batch_size=2, class_labels=[4, 4], seed=3))


def test_a_class_that_is_drawn_comes_from_the_seed(make):
    ours, _ = make(classes=True)
    six = images(ours, batch_size=6, seed=3)
    np.testing.assert_allclose(six[2:3], images(ours, seed=5), atol=1e-4)
    each = [images(ours, class_labels=label, seed=5) for label in range(7)]
    assert sum(np.allclose(six[2:3], one, atol=1e-4) for one in each) == 1


def test_callbacks(make):
    logs: list[list] = [[], []]
    for pipe, log in zip(make(), logs, strict=True):
        images(pipe, num_inference_steps=3, callback=lambda i, t, x, log=log: log.append((i, float(t), x.shape)))
    assert [(i, shape) for i, _, shape in logs[0]] == [(i, shape) for i, _, shape in logs[1]]
    np.testing.assert_allclose([t for _, t, _ in logs[0]], [t for _, t, _ in logs[1]], rtol=1e-6)


def test_folders_go_both_ways(make, tmp_path):
    import diffusers

    ours, theirs = make(classes=True)
    assert type(ours) is langevin.ConsistencyModelPipeline
    ours.save_pretrained(tmp_path)
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    assert_same((ours, back), class_labels=2)
    assert type(back) is type(theirs)


@pytest.mark.parametrize("call", [dict(class_labels=[1, 6]), {}], ids=["given", "drawn"])
def test_it_can_be_made_again(make, tmp_path, call):
    assert_made_again(make(classes=True)[0], tmp_path, row=1, batch_size=2, seed=3, timesteps=[22, 0], **call)


@pytest.mark.parametrize(
    ("classes", "options", "says"),
    [
        (False, dict(class_labels=3), "knows no classes"),
        (True, dict(class_labels=[1, 2]), "1 whole numbers from 0 to 6"),
        (True, dict(class_labels=7), "from 0 to 6"),
        (True, dict(class_labels=-1), "class_labels is -1"),
        (False, dict(timesteps=[0, 22]), "descending"),
        (False, dict(latents=torch.zeros(1, 3, 4, 4)), r"\(1, 3, 8, 8\) is needed"),
    ],
)
def test_bad_input_gets_one_clear_line(make, classes, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        make(classes=classes)[0](**options)
    assert "\n" not in str(caught.value)
