"""Schedulers of models distilled to few steps: LCM, TCD and consistency models."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
import torch

import langevin
from langevin import CMStochasticIterativeScheduler, LCMScheduler, TCDScheduler
from tests.schedulers.scheduler_checks import (
    STEPS,
    both,
    distance,
    familiar,
    finite,
    planned,
    reference,
    same_as_reference,
    starts,
)

LCM, TCD, CM = "LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler"
SHARED = [
    {},
    {"original_inference_steps": 100, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"original_inference_steps": 60, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"num_train_timesteps": 500, "beta_end": 0.02, "prediction_type": "sample"},
    {"trained_betas": np.linspace(0.0005, 0.015, 1000).tolist(), "set_alpha_to_one": False},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]
CASES = [
    *((LCM, config, {}) for config in SHARED),
    *(
        (LCM, config, {})
        for config in (
            {"timestep_scaling": 0.01},
            {"clip_sample": True, "clip_sample_range": 0.4},
            {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
        )
    ),
    *((TCD, config, {"eta": eta}) for config in SHARED for eta in (0.3, 0.0)),
    *((TCD, config, {"eta": 1.0}) for config in SHARED[:2]),
    (TCD, {"thresholding": True}, {"eta": 0.7}),
    (CM, {}, {}),
    (CM, {"clip_denoised": False, "num_train_timesteps": 201, "sigma_data": 1.0}, {}),
    (CM, {"s_noise": 1.1, "rho": 5.0, "sigma_min": 0.01, "sigma_max": 40.0, "clip_denoised": False}, {}),
]
GRIDS = [
    {"num_inference_steps": 4, "original_inference_steps": 25},
    {"num_inference_steps": 4, "original_inference_steps": 100},
    {"num_inference_steps": 4, "strength": 0.5},
    {"num_inference_steps": 7, "strength": 0.83, "original_inference_steps": 77},
    {"timesteps": [999, 759, 499, 259]},
    {"timesteps": [999, 500, 3, 0]},
    {"timesteps": [980, 3]},
    {"timesteps": [999, 759, 499, 259], "strength": 0.5},
    {"timesteps": [999, 759, 499, 259, 30], "strength": 0.7},
]


def label(value):
    if isinstance(value, dict):
        return "-".join(f"{k}={'…' if k == 'trained_betas' else v}" for k, v in value.items()) or "plain"
    return value if isinstance(value, str) else None


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("diffusers").setLevel(logging.ERROR)


# -- numbers of the reference ----------------------------------------------------------------------------------------


def same(name, ours, theirs, steps, start, **options):
    """As in the reference, both ways. What TCD's tuple has second is not x0, which is compared apart."""
    if name != TCD:
        same_as_reference(ours, theirs, steps, start, **options)
        return
    same_as_reference(ours, theirs, steps, start, ways=(familiar,), **options)
    want = familiar(theirs, steps, start, **options)
    given = options.pop("set_with", None)
    if given is not None:
        given = {**given, **{k: v for k, v in options.items() if k == "eta"}}
        options = {k: v for k, v in options.items() if k != "eta"}
    assert distance(planned(ours, steps, start, set_with=given, **options), want) < 1e-5


@pytest.mark.parametrize(("name", "config", "options"), CASES, ids=label)
def test_whole_trajectories_equal_the_reference(name, config, options):
    ours, theirs = both(name, **config)
    for steps in STEPS:
        if name == CM and steps > len(ours):
            continue
        for start in starts(steps):
            same(name, ours, theirs, steps, start, seed=steps, **options)


@pytest.mark.parametrize("given", GRIDS, ids=label)
@pytest.mark.parametrize("name", [LCM, TCD])
def test_other_grids_and_chosen_timesteps_equal_the_reference(name, given):
    ours, theirs = both(name)
    options = {"eta": 0.4} if name == TCD else {}
    same(name, ours, theirs, None, 0, set_with=given, **options)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    same(name, ours, theirs, None, 1, set_with=given, **options)


@pytest.mark.parametrize("places", [[22, 0], [39, 20, 7, 1, 0], [17]])
def test_chosen_places_of_consistency_models_equal_the_reference(places):
    ours, theirs = both(CM)
    for start in range(len(places)):
        same(CM, ours, theirs, None, start, set_with={"timesteps": places})


@pytest.mark.parametrize("eta", np.linspace(0, 1, 11))
def test_tcd_goes_down_to_the_same_timesteps(eta):
    ours, theirs = both(TCD)
    for steps in (4, 50):
        same(TCD, ours, theirs, steps, 0, eta=float(eta))


@pytest.mark.parametrize(("name", "config", "options"), CASES, ids=label)
def test_lists_equal_the_reference(name, config, options):
    ours, theirs = both(name, **config)
    for attribute in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"):
        assert hasattr(ours, attribute) == hasattr(theirs, attribute)
        if hasattr(theirs, attribute):
            torch.testing.assert_close(getattr(ours, attribute), getattr(theirs, attribute), rtol=0, atol=0)
    for steps in (None, *STEPS):
        if name == CM and (steps or 0) > len(ours):
            continue
        if steps is not None:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-4, check_dtype=name != CM)
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma))
        if hasattr(theirs, "sigmas") and steps:
            torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-7)
    assert len(ours) == len(theirs)


@pytest.mark.parametrize("name", [LCM, TCD])
def test_places_of_timesteps_equal_the_reference(name):
    ours, theirs = both(name)
    for steps in (None, 4):
        if steps:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        for t in theirs.timesteps[:4] if steps else (999, 500, 0):
            assert ours.previous_timestep(t) == theirs.previous_timestep(t)
            assert ours.index_for_timestep(t) == theirs.index_for_timestep(t)


@pytest.mark.parametrize("name", [LCM, TCD])
def test_training_noise_and_velocity_equal_the_reference(name):
    ours, theirs = both(name)
    x0, noise, t = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5), torch.tensor([0, 17, 500, 999])
    for steps in (None, 4):
        if steps:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        for method in ("add_noise", "get_velocity"):
            mine, his = (getattr(scheduler, method)(x0, noise, t) for scheduler in (ours, theirs))
            torch.testing.assert_close(mine, his, rtol=1e-5, atol=1e-6)


def test_consistency_models_scalings_and_noise_equal_the_reference():
    ours, theirs = both(CM, sigma_data=0.7)
    sigma = torch.tensor([0.002, 0.4, 80.0])
    for method in ("get_scalings", "get_scalings_for_boundary_condition"):
        for mine, his in zip(getattr(ours, method)(sigma), getattr(theirs, method)(sigma), strict=True):
            torch.testing.assert_close(mine, his)
    assert ours.sigma_to_t(0.4) == pytest.approx(theirs.sigma_to_t(0.4))
    x, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(5)
    t = theirs.timesteps[[0, 3]]
    torch.testing.assert_close(ours.add_noise(x, noise, t), theirs.add_noise(x, noise, t), rtol=1e-5, atol=1e-5)


def test_outputs_are_named_as_in_the_reference():
    x = torch.randn(1, 3, 4, 4)
    for name, second in ((LCM, "denoised"), (TCD, "pred_noised_sample")):
        outputs = []
        for scheduler in both(name):
            scheduler.set_timesteps(4)
            outputs.append(scheduler.step(x.tanh(), 999, x, generator=torch.Generator().manual_seed(1)))
        mine, his = outputs
        torch.testing.assert_close(getattr(mine, second), getattr(his, second), rtol=1e-5, atol=1e-5)
        assert mine[second] is getattr(mine, second)
        assert mine["prev_sample"] is mine.prev_sample is mine[0]


@pytest.mark.parametrize(
    ("name", "config"),
    [(LCM, {}), (LCM, {"prediction_type": "v_prediction", "original_inference_steps": 25}), (TCD, {}), (CM, {}),
     (CM, {"sigma_data": 1.0})],
    ids=label,
)  # fmt: skip
def test_saved_here_loads_there_and_back(name, config, tmp_path):
    for scheduler, folder in zip(both(name, **config), ("ours", "theirs"), strict=True):
        scheduler.save_pretrained(tmp_path / folder)
        make, remake = (type(s) for s in both(name))
        loaded = make.from_pretrained(tmp_path / folder), remake.from_pretrained(tmp_path / folder)
        swapped = make.from_config(loaded[0].config), remake.from_config(loaded[1].config)
        for here, there in (loaded, swapped):
            same(name, here, there, 4, 0)


def test_a_latent_models_config_makes_the_scheduler_that_it_makes_in_the_reference():
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    for name in (LCM, TCD):
        ours, theirs = both("EulerDiscreteScheduler", **config)
        here, there = (
            getattr(library, name).from_config(s.config) for library, s in ((langevin, ours), (reference(), theirs))
        )
        same(name, here, there, 4, 0)


@pytest.mark.parametrize(
    ("name", "config", "given", "word"),
    [
        *((name, {}, {}, "one of") for name in (LCM, TCD, CM)),
        *((name, {}, {"num_inference_steps": 3, "timesteps": [3, 2]}, "one of") for name in (LCM, TCD, CM)),
        *((name, {}, {"timesteps": [3, 20]}, "descending") for name in (LCM, TCD, CM)),
        *((name, {}, {"timesteps": [1000, 20]}, "1000") for name in (LCM, TCD, CM)),
        *((name, {}, {"num_inference_steps": 1001}, "1001") for name in (LCM, TCD, CM)),
        *((name, {}, {"num_inference_steps": 51}, "51") for name in (LCM, TCD)),
        *((name, {}, {"num_inference_steps": 30, "strength": 0.5}, "25") for name in (LCM, TCD)),
        *((name, {"original_inference_steps": 1001}, {"num_inference_steps": 4}, "1001") for name in (LCM, TCD)),
        (LCM, {}, {"num_inference_steps": 4, "original_inference_steps": 1001}, "1001"),
        (TCD, {}, {"num_inference_steps": 30, "original_inference_steps": 20}, "30"),
        *((name, {"beta_schedule": "quartic"}, {"num_inference_steps": 4}, "quartic") for name in (LCM, TCD)),
    ],
    ids=label,
)
def test_what_the_reference_refuses_is_refused(name, config, given, word):
    for library in (reference(), langevin):
        with pytest.raises((ValueError, NotImplementedError)) as caught:
            getattr(library, name)(**config).set_timesteps(**given)
    assert word in str(caught.value)


def used(cls, x, **config):
    scheduler = cls(**config)
    scheduler.set_timesteps(5)
    return scheduler.step(x, 999, x)


def test_steps_that_the_reference_refuses_are_refused():
    x = torch.zeros(1, 3, 2, 2)
    for name in (LCM, TCD):
        for scheduler in both(name):
            with pytest.raises(ValueError, match="set_timesteps"):
                scheduler.step(x, 999, x)
        for library in (langevin, reference()):
            with pytest.raises(ValueError, match="wish"):
                used(getattr(library, name), x, prediction_type="wish")
    for scheduler in both(TCD):
        scheduler.set_timesteps(5)
        with pytest.raises((ValueError, AssertionError)):
            scheduler.step(x, 999, x, eta=1.5)
    for scheduler in both(CM):
        scheduler.set_timesteps(5)
        for t in (0, torch.tensor(3)):
            with pytest.raises(ValueError, match=r"integer|whole"):
                scheduler.step(x, t, x)
    for make in (LCMScheduler, TCDScheduler):  # the reference divides by zero
        run = make(rescale_betas_zero_snr=True).plan(4)
        with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
            run.step(x, 0, x)
    with pytest.raises(ValueError, match="strength"):
        LCMScheduler().plan(timesteps=[999, 499], strength=0.2)


# -- without the reference -------------------------------------------------------------------------------------------


def output_for(run, i, x, x0):
    """The output of a network that believes in x0."""
    p, q = run.to_x0(run.levels[i])
    return (x0 - p * x) / q


def sample(run, x, believe, start=0, noise=torch.randn_like):
    for i in range(start, len(run)):
        x = run.step(output_for(run, i, x, believe(run.levels[i], x)), i, x, noise).prev_sample
    return x


FORMS = ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize("spacing", [None, "karras", "trailing", "exponential"])
@pytest.mark.parametrize("form", FORMS)
def test_a_perfect_prediction_of_one_point_is_reached(form, spacing):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    makes = [(LCMScheduler(prediction_type=form), {}), (TCDScheduler(prediction_type=form), {"eta": 0.3}),
             (TCDScheduler(prediction_type=form), {"eta": 0.0}), (CMStochasticIterativeScheduler(), {})]  # fmt: skip
    for (scheduler, options), steps in itertools.product(makes, (1, 2, 3, 7, 20)):
        if spacing is not None:
            scheduler = scheduler.with_spacing(spacing)
        published = {"as_published": True} if "as_published" in scheduler.run_options else {}
        for start in starts(steps):
            run = scheduler.plan(steps, **options, **published)
            x = run.add_noise(point, torch.randn_like(point), start)
            # LCM's consistency function keeps this much of x, all of it at timestep 0
            kept = run.skips[-1][0] if isinstance(scheduler, LCMScheduler) else 0.0
            end = sample(run, x, lambda *_: point, start)
            torch.testing.assert_close(end, point, rtol=0, atol=1e-8 + 5 * kept)


def test_forms_agree():
    for make in (LCMScheduler, TCDScheduler):
        ends = []
        for form in FORMS:
            generator = torch.Generator().manual_seed(3)

            def noise(like, generator=generator):
                return torch.randn(like.shape, generator=generator, dtype=like.dtype)

            run = make(prediction_type=form).plan(9)
            x = noise(torch.empty(2, 3, 4, 4, dtype=torch.float64))
            ends.append(sample(run, x, lambda level, x: 0.3 + 0.5 * x.tanh(), noise=noise))
        for end in ends[1:]:
            torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-9)


def test_tcd_without_noise_is_ddim():
    """Going to the next timestep along the trajectory, and nowhere else, is equation 12 of DDIM with η = 0."""
    timesteps = [999, 700, 400, 100]
    run = TCDScheduler().plan(timesteps=timesteps, eta=0.0, as_published=True)
    other = langevin.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).plan(timesteps=timesteps)
    x = y = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    for i in range(4):
        x, y = run.step(x.tanh(), i, x).prev_sample, other.step(y.tanh(), i, y).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_with_an_exact_consistency_function_the_spread_is_right():
    """A consistency function takes the ODE's way to x0, for a Gaussian known in closed form: every stochastic sampler
    then gives the right distribution from as many steps as one likes."""
    torch.manual_seed(0)
    mean, deviation = 0.4, 0.7

    def end_of_ode(level, x):
        return mean + deviation * (x - level.alpha * mean) / math.hypot(level.sigma, level.alpha * deviation)

    runs = {
        "lcm": LCMScheduler(timestep_scaling=1e6).plan(5),
        "cm": CMStochasticIterativeScheduler(clip_denoised=False).plan(timesteps=[30, 20, 12, 4, 0]),
    }
    for name, run in runs.items():
        level = run.levels[0]
        x = level.alpha * (mean + deviation * torch.randn(1, 1, 200, 200, dtype=torch.float64))
        end = sample(run, x + level.sigma * torch.randn_like(x), end_of_ode)
        assert end.mean().item() == pytest.approx(mean, abs=0.02), name
        assert end.std().item() == pytest.approx(deviation, rel=0.03), name


@pytest.mark.parametrize("eta", [0.0, 0.02])  # more is for networks that were taught to go so far in one step
def test_tcd_gives_a_gaussians_mean_and_spread_in_many_steps(eta):
    torch.manual_seed(0)
    mean, deviation = 0.4, 0.7

    def believe(level, x):
        alpha, sigma = level
        return mean + alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * (x - alpha * mean)

    run = TCDScheduler().plan(timesteps=range(999, -1, -4), eta=eta, as_published=True)
    x0, noise = mean + deviation * torch.randn(1, 1, 100, 200, dtype=torch.float64), torch.randn(1, 1, 100, 200)
    end = sample(run, run.add_noise(x0, noise, 0), believe)
    assert end.mean().item() == pytest.approx(mean, abs=0.03)
    assert end.std().item() == pytest.approx(deviation, rel=0.05)


def test_the_last_step_leaves_no_noise_if_asked():
    point = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    given = {"timesteps": [999, 759, 499, 259], "strength": 0.5}
    for published in (True, False):
        run = LCMScheduler().plan(**given, as_published=published)
        end = sample(run, run.add_noise(point, torch.randn_like(point), 0), lambda *_: point)
        assert ((end - 0.5).std().item() < 1e-3) == published
    assert TCDScheduler().plan(4, as_published=True).targets[-1] == (1.0, 0.0)
    assert TCDScheduler().plan(4).targets[-1].sigma == pytest.approx(math.sqrt(0.00085), rel=1e-4)


def test_grids_by_hand():
    assert LCMScheduler().plan(4).timesteps == [999, 759, 499, 259]
    assert LCMScheduler().plan(1).timesteps == [999]
    assert LCMScheduler().plan(2, strength=0.5).timesteps == [499, 259]
    assert TCDScheduler().plan(4, original_inference_steps=50).timesteps == [999, 749, 499, 249]
    assert CMStochasticIterativeScheduler(num_train_timesteps=1).plan(1).sigmas == pytest.approx([80.0, 0.002])


@pytest.mark.parametrize(
    ("scheduler", "options", "calls"),
    [
        (LCMScheduler(), {}, 5),  # none in the last step
        (LCMScheduler(thresholding=True), {}, 5),
        (TCDScheduler(), {}, 5),
        (TCDScheduler(), {"eta": 0.0}, 0),
        (CMStochasticIterativeScheduler(), {}, 5),
    ],
)
def test_a_step_never_looks_at_the_numbers_and_draws_only_what_it_needs(scheduler, options, calls):
    drawn = []

    def noise(like):
        drawn.append(like.shape)
        return torch.empty_like(like)

    run = scheduler.plan(6, **options)
    x = torch.empty(2, 3, 4, 4, device="meta")
    for i in range(len(run)):
        run.add_noise(x, x, i)
        out = run.step(run.scale_model_input(x, i), i, x, noise)
        assert out.pred_original_sample.shape == x.shape
        x = out.prev_sample
    assert drawn == [(2, 3, 4, 4)] * calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nothing_is_nan_and_samples_keep_their_precision(dtype):
    for name, config, options in CASES:
        for steps in (1, 2, 6):
            run = getattr(langevin, name)(**config).plan(steps, **options)
            x = torch.linspace(-3, 3, 12).reshape(1, 3, 2, 2).to(dtype) * run.init_noise_sigma
            before = x.clone()
            run.step(torch.tanh(x), 0, x)
            assert torch.equal(x, before)
            for i in range(steps):
                out = run.step(torch.tanh(run.scale_model_input(x, i)), i, x)
                x = out.prev_sample
                for tensor in (x, out.pred_original_sample, run.scale_model_input(x, i), run.add_noise(x, x, i)):
                    assert tensor.isfinite().all(), (name, config, steps, i)
                    assert tensor.dtype == dtype


def test_trajectories_are_finite_with_every_spacing():
    for name, steps in itertools.product((LCM, TCD, CM), (1, 2, 7)):
        for spacing in ("leading", "trailing", "linspace", "karras", "exponential", "beta"):
            spaced = getattr(langevin, name)().with_spacing(spacing)
            assert finite(planned(spaced, steps))
            assert distance(familiar(spaced, steps), planned(spaced, steps)) < 1e-6
