"""DDPMPipeline and DDIMPipeline against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import langevin
from tests.pipelines.family_checks import UNCONDITIONAL

CASES = {
    "default": {},
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "v": dict(prediction_type="v_prediction", timestep_spacing="trailing"),
    "large variance": dict(variance_type="fixed_large"),
    "no clipping": dict(clip_sample=False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import diffusers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ddpm")
    diffusers.DDPMPipeline(diffusers.UNet2DModel(**UNCONDITIONAL).eval(), diffusers.DDPMScheduler()).save_pretrained(
        folder
    )
    return folder


def both(folder, name, **config):
    import diffusers

    pipes = []
    for library in (langevin, diffusers):
        unet = library.UNet2DModel.from_pretrained(folder, subfolder="unet")
        pipe = getattr(library, name)(unet, library.DDPMScheduler(**config))
        pipe.set_progress_bar_config(disable=True)
        pipes.append(pipe)
    return pipes


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDPMPipeline", {}),
        ("DDIMPipeline", {}),
        ("DDIMPipeline", dict(eta=0.7)),
        ("DDIMPipeline", dict(eta=1.0, use_clipped_model_output=True)),
    ],
    ids=["ddpm", "ddim", "ddim eta", "ddim clipped"],
)
def test_pictures_are_the_reference_ones(folder, case, name, options):
    ours, theirs = (
        pipe(
            batch_size=2,
            num_inference_steps=5,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            **options,
        ).images
        for pipe in both(folder, name, **CASES[case])
    )
    assert ours.shape == theirs.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_list_of_generators_and_pil(folder):
    ours, theirs = (
        pipe(
            batch_size=2,
            num_inference_steps=3,
            generator=[torch.Generator().manual_seed(s) for s in (1, 2)],
            return_dict=False,
        )[0]
        for pipe in both(folder, "DDPMPipeline")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 1


def test_ddim_turns_any_scheduler_into_its_own(folder):
    pipe = both(folder, "DDIMPipeline", beta_schedule="squaredcos_cap_v2")[0]
    assert isinstance(pipe.scheduler, langevin.DDIMScheduler)
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"


def test_the_one_door_gives_the_right_class_and_seeds_make_the_same_picture_alone(folder):
    pipe = langevin.DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is langevin.DDPMPipeline
    pipe.set_progress_bar_config(disable=True)
    batch = pipe(batch_size=3, num_inference_steps=3, seed=4).images
    alone = pipe(num_inference_steps=3, seed=6).images[0]
    assert np.abs(np.asarray(batch[2], dtype=int) - np.asarray(alone, dtype=int)).max() <= 1
    assert batch[2].settings["seed"] == 6


def test_a_callback_may_change_the_picture_on_its_way(folder):
    pipe = both(folder, "DDPMPipeline")[0]
    out = pipe(
        num_inference_steps=3,
        output_type="np",
        callback_on_step_end=lambda call, i, t, tensors: {"latents": tensors["latents"] * 0},
    ).images
    assert np.all(out == 0.5)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_bad_batch_sizes_are_refused(folder, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        both(folder, "DDPMPipeline")[0](batch_size=batch_size)
