"""Noise schedules and spacings by themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from langevin.schedulers import spacing
from langevin.schedulers.noise import BETA_SCHEDULES, Level, NoiseSchedule, rescale_to_zero_terminal_snr


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_noise_grows(name):
    noise = NoiseSchedule.from_config(beta_schedule=name)
    assert len(noise) == 1000
    assert ((noise.betas > 0) & (noise.betas < 1)).all()
    assert (np.diff(noise.sigmas) > 0).all()
    for t in (0, 400, 999):
        alpha, sigma = noise.level(t)
        assert alpha**2 + sigma**2 == pytest.approx(1)
        assert noise.level(t).ratio == pytest.approx(noise.sigmas[t])
        assert noise.timestep_of(noise.sigmas[t]) == pytest.approx(t, abs=1e-3)


def test_timesteps_between_two_are_between_in_noise_and_found_again():
    noise = NoiseSchedule.from_config()
    assert noise.sigmas[400] < noise.level(400.3).ratio < noise.sigmas[401]
    assert noise.timestep_of(noise.level(400.3).ratio) == pytest.approx(400.3, abs=1e-3)
    assert noise.timestep_of(1e9) == 999
    assert noise.timestep_of(0.0) == 0
    for outside in (-1, 1000, 999.5):
        with pytest.raises(ValueError, match=r"0\.\.999"):
            noise.level(outside)


def test_zero_terminal_snr_ends_in_pure_noise_and_begins_as_before():
    before = NoiseSchedule.from_config(beta_schedule="scaled_linear")
    after = NoiseSchedule.from_config(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    assert after.alpha_bar[-1] == 0.0
    assert after.level(999) == Level(0.0, 1.0)
    assert after.alpha_bar[0] == pytest.approx(before.alpha_bar[0], rel=1e-6)
    assert math.isfinite(after.sigmas[-1])
    assert torch.allclose(rescale_to_zero_terminal_snr(before.betas), after.betas)


@pytest.mark.parametrize("steps", range(1, 1001, 7))
def test_timestep_spacings_visit_n_different_timesteps(steps):
    for name, space in spacing.TIMESTEP_SPACINGS.items():
        visited = [round(t) for t in space(1000, steps)]
        assert len(set(visited)) == len(visited) == steps, name
        assert visited == sorted(visited, reverse=True)
        assert 0 <= visited[-1] <= visited[0] <= 999
    assert spacing.trailing(1000, steps)[0] == 999
    assert spacing.leading(1000, steps)[-1] == 0


def test_sigma_spacings_go_from_end_to_end():
    for name, space in spacing.SIGMA_SPACINGS.items():
        sigmas = space(14.6, 0.03, 12)
        assert (len(sigmas), sigmas[0]) == (12, pytest.approx(14.6)), name
        if name not in ("linear_quadratic", "align_your_steps"):  # whose last level is the one after
            assert sigmas[-1] == pytest.approx(0.03), name
        assert sigmas == sorted(sigmas, reverse=True)
        assert space(14.6, 0.03, 1) == pytest.approx([14.6])


def test_karras_spacing_is_even_in_the_seventh_root():
    roots = np.array(spacing.karras(80.0, 0.002, 18)) ** (1 / 7)
    assert np.diff(roots) == pytest.approx(np.full(17, np.diff(roots)[0]))


def test_quantiles_of_the_beta_distribution():
    for p in (0.001, 0.2, 0.5, 0.77, 0.999):  # a = b = 1/2: the arcsine distribution; a = b = 1: uniform; a = 2, b = 1
        assert spacing.beta_quantile(p, 0.5, 0.5) == pytest.approx(math.sin(math.pi * p / 2) ** 2, rel=1e-12)
        assert spacing.beta_quantile(p, 1.0, 1.0) == pytest.approx(p, rel=1e-12)
        assert spacing.beta_quantile(p, 2.0, 1.0) == pytest.approx(math.sqrt(p), rel=1e-12)
    assert spacing.beta_quantile(0.0, 0.6, 0.6) == 0.0
    assert spacing.beta_quantile(1.0, 0.6, 0.6) == 1.0


def test_polyexponential_is_exponential_with_a_bend():
    assert spacing.polyexponential(14.6, 0.03, 9) == pytest.approx(spacing.exponential(14.6, 0.03, 9))
    steps = np.diff(np.log(spacing.polyexponential(14.6, 0.03, 9, rho=2.0)))
    assert steps == pytest.approx(np.diff(np.linspace(1, 0, 9) ** 2) * math.log(14.6 / 0.03))


def test_kl_optimal_is_even_in_the_angle():
    angles = np.arctan(spacing.kl_optimal(14.6, 0.03, 9))
    assert np.diff(angles) == pytest.approx(np.full(8, np.diff(angles)[0]))


@pytest.mark.parametrize("steps", [2, 3, 10, 31])
def test_linear_quadratic_is_smooth_and_ends_at_zero(steps):
    sigmas = np.array([*spacing.linear_quadratic(1.0, 0.0, steps, threshold=0.03), 0.0])
    half = steps // 2
    assert np.diff(sigmas[: half + 1]) == pytest.approx(np.full(half, -0.03 / half))
    assert np.diff(sigmas, 3)[half:] == pytest.approx(np.zeros(max(steps - 2 - half, 0)), abs=1e-12)
    bends = np.diff(sigmas, 2)[half:]
    assert bends == pytest.approx(np.full(len(bends), bends[0] if len(bends) else 0.0))


def test_align_your_steps_gives_the_published_levels_at_ten_steps_and_lies_between_at_others():
    published = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]
    assert spacing.align_your_steps(14.615, 0.029, 10) == pytest.approx(published)
    assert spacing.align_your_steps(14.615, 0.029, 20)[::2] == pytest.approx(published)
    stretched = spacing.align_your_steps(80.0, 0.002, 10, model="svd")
    assert stretched[0] == pytest.approx(80.0)
    with pytest.raises(ValueError, match="'sdxl'"):
        spacing.align_your_steps(14.6, 0.03, 10, model="flux")


def test_timestep_spacings_by_hand():
    assert spacing.sgm_uniform(1000, 4) == pytest.approx([999.0, 749.25, 499.5, 249.75])
    assert spacing.simple(1000, 3) == [999, 666, 333]
    assert spacing.ddim_uniform(1000, 4) == [751, 501, 251, 1]
