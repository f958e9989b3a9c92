"""PNDM, score SDE and Karras VE pipelines against the reference; the variance-preserving one against the paper."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import langevin
from tests.pipelines.family_checks import UNCONDITIONAL

UNET = {**UNCONDITIONAL, "sample_size": 8}
# the published networks of SDEs: skips, and noise levels as Fourier features
NCSN = {
    **UNET,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "time_embedding_type": "fourier",
    "freq_shift": 0,
    "center_input_sample": True,
    "mid_block_scale_factor": 1.4142,
    "block_out_channels": (32, 32),
    "norm_num_groups": 32,
    "attention_head_dim": None,
}
CASES = {
    "pndm": ("PNDMPipeline", "PNDMScheduler", {}, UNET, 6),
    "pndm without Runge-Kutta": ("PNDMPipeline", "PNDMScheduler", dict(skip_prk_steps=True), UNET, 6),
    "pndm of another": ("PNDMPipeline", "DDIMScheduler", dict(beta_schedule="squaredcos_cap_v2"), UNET, 6),
    "score sde": ("ScoreSdeVePipeline", "ScoreSdeVeScheduler", dict(sigma_max=50.0), NCSN, 5),
    "two corrections": ("ScoreSdeVePipeline", "ScoreSdeVeScheduler", dict(correct_steps=2, snr=0.1), NCSN, 4),
    "plain network": ("ScoreSdeVePipeline", "ScoreSdeVeScheduler", dict(sigma_max=5.0, sigma_min=0.1), UNET, 5),
    "karras": ("KarrasVePipeline", "KarrasVeScheduler", dict(sigma_max=5.0), NCSN, 3),
    "karras without churn": ("KarrasVePipeline", "KarrasVeScheduler", dict(s_churn=0, sigma_max=20.0), UNET, 5),
}


def pair(case, folder):
    import diffusers

    name, scheduler, config, network, steps = CASES[case]
    torch.manual_seed(0)
    theirs = getattr(diffusers, name)(diffusers.UNet2DModel(**network).eval(), getattr(diffusers, scheduler)(**config))
    theirs.unet.save_pretrained(folder / "unet")
    ours = getattr(langevin, name)(
        langevin.UNet2DModel.from_pretrained(folder / "unet"), getattr(langevin, scheduler)(**config)
    )
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    return ours, theirs, steps


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 2])
def test_pictures_are_the_reference_ones(case, batch, tmp_path):
    ours, theirs, steps = pair(case, tmp_path)
    made = [
        pipe(batch, generator=torch.Generator().manual_seed(3), num_inference_steps=steps, output_type="np").images
        for pipe in (ours, theirs)
    ]
    np.testing.assert_allclose(*made, atol=1e-4)


@pytest.mark.parametrize("case", ["pndm", "score sde", "karras"])
def test_checkpoints_go_both_ways(case, tmp_path):
    ours, theirs, steps = pair(case, tmp_path)
    call = dict(num_inference_steps=steps, output_type="np")
    expected = ours(**call, seed=1).images
    theirs.save_pretrained(tmp_path / "theirs")
    read = langevin.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(read) is type(ours)
    read.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(read(**call, seed=1).images, expected)
    ours.save_pretrained(tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours")
    back.set_progress_bar_config(disable=True)
    again = back(**call, generator=torch.Generator().manual_seed(1)).images
    np.testing.assert_allclose(again, expected, atol=1e-4)
    # a folder that names the scheduler's room, as some public ones do
    index = tmp_path / "ours" / "model_index.json"
    entries = json.loads(index.read_text())
    entries["scheduler"][0] = "deprecated"
    index.write_text(json.dumps(entries))
    assert type(langevin.DiffusionPipeline.from_pretrained(tmp_path / "ours")) is type(ours)


@pytest.mark.parametrize("case", ["pndm", "score sde", "karras"])
def test_a_picture_is_what_it_is_alone(case, tmp_path):
    ours, _, steps = pair(case, tmp_path)
    options = {} if case == "pndm" else {"as_published": True}
    call = dict(num_inference_steps=steps, output_type="pt", **options)
    together = ours(3, seed=5, **call).images
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(ours(1, seed=6, **call).images[0], together[1], atol=1e-4, rtol=0)


def test_the_score_of_a_gaussian_leads_to_it(tmp_path):
    """Pictures of a known law: each pixel of mean 0.5 and deviation 0.1, whose score at σ is (0.5 - x)/(0.1² + σ²)."""
    ours, _, _ = pair("plain network", tmp_path)
    ours.scheduler = langevin.ScoreSdeVeScheduler(sigma_max=5.0, sigma_min=0.01)

    def score(x, sigma, return_dict=False, **told):
        return ((0.5 - x) / (0.01 + sigma**2),)

    ours.unet.forward = score
    for published in (False, True):
        made = ours(16, num_inference_steps=200, seed=1, output_type="pt", as_published=published).images
        assert abs(float(made.mean()) - 0.5) < 0.01
        assert abs(float(made.std()) - 0.1) < 0.02


# ------------------------------------------------------------------------ the SDE for which the reference runs nothing


@pytest.fixture(scope="module")
def preserving(tmp_path_factory):
    """A folder in the layout of the reference, with its network and scheduler, and its name for the room."""
    import diffusers
    from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

    folder = tmp_path_factory.mktemp("score-sde-vp")
    torch.manual_seed(0)
    diffusers.UNet2DModel(**UNET).eval().save_pretrained(folder / "unet")
    ScoreSdeVpScheduler(beta_max=15).save_pretrained(folder / "scheduler")
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["deprecated", "ScoreSdeVpScheduler"]}
    index = {"_class_name": "ScoreSdeVpPipeline", "_diffusers_version": "0.2.4", **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def vp(folder):
    pipe = langevin.DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is langevin.ScoreSdeVpPipeline
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_variance_preserving_run_is_the_papers_with_the_references_parts(preserving, tmp_path):
    """Equation 11 with the reference's network and its scheduler's steps; the last one's mean is the picture."""
    import diffusers
    from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

    network = diffusers.UNet2DModel.from_pretrained(preserving, subfolder="unet")
    scheduler = ScoreSdeVpScheduler.from_pretrained(preserving, subfolder="scheduler")
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        for t in scheduler.timesteps:
            told = t * torch.ones(2)
            x, mean = scheduler.step_pred(network(x, 999 * told).sample, x, told, generator=generator)
    pipe = vp(preserving)
    call = dict(num_inference_steps=6, output_type="pt")
    made = pipe(2, generator=torch.Generator().manual_seed(4), **call).images
    torch.testing.assert_close(made, (mean / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(vp(tmp_path)(seed=2, **call).images, pipe(seed=2, **call).images)
    together = pipe(3, seed=5, **call).images
    torch.testing.assert_close(pipe(1, seed=6, **call).images[0], together[1], atol=1e-4, rtol=0)


def test_the_score_of_a_gaussian_leads_to_it_where_variance_is_preserved(preserving):
    """Each pixel of mean 0.3 and deviation 0.2 in [-1, 1]: at time t its score is (0.3·α - x)/(0.2²·α² + σ²)."""
    pipe = vp(preserving)
    told = []

    def score(x, level, return_dict=False, **more):
        told.append(level)
        alpha, sigma = (float(one) for one in pipe.scheduler._levels(torch.tensor(level / 999, dtype=torch.float64)))
        return (-sigma * (0.3 * alpha - x) / (0.04 * alpha**2 + sigma**2),)

    pipe.unet.forward = score
    made = 2 * pipe(32, num_inference_steps=300, seed=1, output_type="pt").images - 1
    assert (told[0], len(told)) == (999, 300)
    assert told[-1] == pytest.approx(0.999)
    assert abs(float(made.mean()) - 0.3) < 0.01
    assert abs(float(made.std()) - 0.2) < 0.01
    each = made.std(dim=0)  # of pixels that know nothing of each other
    assert float(each.min()) > 0.1
    assert float(each.max()) < 0.35
