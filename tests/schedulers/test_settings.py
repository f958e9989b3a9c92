"""Settings of the right type that no run can be made of are refused where they are given: one table for all classes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import langevin
from langevin.checkpoints.errors import CheckpointError
from langevin.schedulers.settings import TABLE

NEEDED = {"VQDiffusionScheduler": {"num_vec_classes": 8}}
NAMES = [name for name in langevin.__all__ if name.endswith("Scheduler")]
SENSELESS = {
    "num_train_timesteps": [0, -1, 10**9, 0.5, math.nan, "x"],
    "beta_schedule": ["x", ""],
    "beta_start": [-1, math.nan, math.inf, "x"],
    "beta_end": [-1, 2.0, math.nan, math.inf],
    "trained_betas": [[], [math.nan] * 9, [2.0] * 9, [-0.1] * 9, ["x"], [[0.1]]],
    "timestep_spacing": ["x"],
    "prediction_type": ["x"],
    "steps_offset": [-1, 10**9, 0.5],
    "solver_order": [0, -1, 10**9, 1.5],
    "predictor_order": [0, 99],
    "corrector_order": [0, 99],
    "solver_type": ["x"],
    "algorithm_type": ["x"],
    "final_sigmas_type": ["x"],
    "interpolation_type": ["x"],
    "timestep_type": ["x"],
    "time_shift_type": ["x"],
    "sigma_schedule": ["x"],
    "sigma_min": [-1.0, math.nan, math.inf, 1e30],
    "sigma_max": [-1.0, 0.0, math.nan, math.inf],
    "sigma_data": [0.0, -1.0, math.nan],
    "rho": [0.0, math.nan, math.inf],
    "snr": [0.0, math.nan],
    "sampling_eps": [0.0, 2.0],
    "correct_steps": [-1, 10**9],
    "shift": [0.0, -1.0, math.nan],
    "flow_shift": [0.0, -1.0, math.inf],
    "dynamic_thresholding_ratio": [1.5, -1.0, math.nan],
    "sample_max_value": [0.0, math.nan],
    "clip_sample_range": [0.0, -1.0, math.inf],
    "original_inference_steps": [0, 10**9],
    "noise_sampler_seed": [-1, 0.5],
    "num_vec_classes": [0, 10**9],
}


def made(name, **settings):
    return getattr(langevin, name)(**{**NEEDED.get(name, {}), **settings})


@pytest.mark.parametrize("name", NAMES)
def test_what_no_run_can_be_made_of_is_refused_at_once(name, tmp_path):
    cls = getattr(langevin, name)
    made(name).save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    config = json.loads(file.read_text())
    for key in SENSELESS.keys() & set(cls._settings_names()):
        for value in SENSELESS[key]:
            if (name, key) == ("IPNDMScheduler", "trained_betas") and value == []:
                continue  # which are its levels
            with pytest.raises(ValueError) as caught:
                made(name, **{key: value})
            assert key in str(caught.value)
            assert "\n" not in str(caught.value)
            file.write_text(json.dumps({**config, key: value}))
            with pytest.raises(CheckpointError, match=f"scheduler_config.json.*{key}") as caught:
                cls.from_pretrained(tmp_path)
            assert "\n" not in str(caught.value)
            with pytest.raises(ValueError, match=key):
                cls.from_config(made(name).config, **{key: value})
    names = cls._settings_names()
    if "sigma_min" in names and "sigma_max" in names:
        with pytest.raises(ValueError, match=r"sigma_min=3.* is more than sigma_max=2"):
            made(name, sigma_min=3.0, sigma_max=2.0)


def test_the_table_has_no_settings_that_no_scheduler_has():
    known = {key for name in NAMES for key in getattr(langevin, name)._settings_names()}
    assert TABLE.keys() <= known


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_at_its_default_passes_and_can_be_planned(name):
    scheduler = made(name)
    assert len(scheduler.plan(4))
    again = type(scheduler).from_config(scheduler.config)
    assert dict(again.config) == dict(scheduler.config)


def test_settings_that_look_odd_and_work():
    for settings in (
        {"trained_betas": np.linspace(0.01, 0.02, 1000)},
        {"trained_betas": tuple([0.01] * 1000)},
        {"trained_betas": torch.full((1000,), 0.01)},
        {"beta_start": 0.0, "timestep_spacing": "trailing"},
        {"num_train_timesteps": np.int64(50)},
        {"beta_end": np.float32(0.5)},
        {"num_train_timesteps": 3},
    ):
        run = langevin.DDIMScheduler(**settings).plan(3)
        x = torch.randn(1, 3, 4, 4)
        for i in range(3):
            x = run.step(torch.tanh(x), i, x, torch.randn_like).prev_sample
        assert x.isfinite().all()
    assert len(langevin.EulerDiscreteScheduler(sigma_min=0.1, use_karras_sigmas=True).plan(4)) == 4
    assert len(langevin.DPMSolverMultistepScheduler(lambda_min_clipped=-math.inf, variance_type=None).plan(4)) == 4
    assert len(langevin.DDPMScheduler(variance_type=None).plan(4)) == 4


@pytest.mark.parametrize(
    "spacing",
    [3, [], {"x": 1}, {"name": "x"}, {"name": "karras", "rho": 0}, {"name": "karras", "x": 1},
     {"name": "karras", "rho": "x"}, {"name": "beta", "alpha": -1}, {"name": "karras", "sigma_min": 9, "sigma_max": 1},
     {"name": None}],
    ids=str,
)  # fmt: skip
def test_spacings_in_files(spacing, tmp_path):
    langevin.EulerDiscreteScheduler().save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_spacing": spacing or None}))
    if not spacing:
        assert langevin.EulerDiscreteScheduler.from_pretrained(tmp_path).plan(2)
        return
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json") as caught:
        langevin.EulerDiscreteScheduler.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_without_levels_is_told_by_its_scheduler():
    scheduler = langevin.DDPMScheduler(beta_start=0.0)
    with pytest.raises(ValueError, match="DDPMScheduler cannot lay out"):
        scheduler.plan(1000)
