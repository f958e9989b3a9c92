"""What schedulers must do whatever any other implementation does."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import langevin
from langevin import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from tests.schedulers.meaning_checks import FORMS, gaussian_belief, ode_error, sample
from tests.schedulers.scheduler_checks import NAMES, SPACINGS

NO_BOUND = {"DDIMScheduler": {"clip_sample": False}, "DDPMScheduler": {"clip_sample": False}}


def deterministic() -> list[tuple]:
    """(scheduler, plan options) of every solver that draws no noise, with every spacing."""
    cases = []
    for spacing in SPACINGS:
        cases.append((DDIMScheduler(clip_sample=False).with_spacing(spacing), {"as_published": True}))
        cases.append((EulerDiscreteScheduler().with_spacing(spacing), {}))
        cases.append((HeunDiscreteScheduler().with_spacing(spacing), {}))
        cases.append((LMSDiscreteScheduler().with_spacing(spacing), {"as_published": True}))
        for order in (1, 2, 3):
            cases.append((UniPCMultistepScheduler(solver_order=order).with_spacing(spacing), {}))
            cases.append((DPMSolverMultistepScheduler(solver_order=order).with_spacing(spacing), {}))
        for skip in (True, False):
            scheduler = PNDMScheduler(skip_prk_steps=skip, set_alpha_to_one=True).with_spacing(spacing)
            cases.append((scheduler, {"as_published": True}))
    return cases


def describe(value) -> str | None:
    return f"{type(value).__name__}-{value._spacing[0]}" if hasattr(value, "_spacing") else None


@pytest.mark.parametrize(("scheduler", "options"), deterministic(), ids=describe)
def test_a_perfect_prediction_of_one_point_is_reached_from_any_start(scheduler, options):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    warm_up = not scheduler.config.get("skip_prk_steps", True)
    for steps in (1, 2, 3, 7, 20, 50):
        if warm_up and steps < 4:
            continue
        length = len(scheduler.plan(steps, **options))
        starts = {0} if warm_up else {k - k % scheduler.order for k in (0, 1, length // 2, length - 1) if k < length}
        for start in starts:
            run = scheduler.plan(steps, **options)
            x = run.add_noise(point, torch.randn_like(point), start)
            end = sample(run, x, lambda *_: point, start=start)
            torch.testing.assert_close(end, point, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_prediction_of_two_points_leads_to_the_nearer_one(name):
    """x0 is 1 or -1, equally likely; E[x0 | x] is tanh(α·x/σ²), and the flow never crosses the middle."""
    scheduler = getattr(langevin, name)(beta_schedule="scaled_linear", **NO_BOUND.get(name, {}))
    run = scheduler.with_spacing("karras").plan(20)
    drawn = []

    def noise(like):
        drawn.append(1)
        return torch.randn_like(like)

    start = torch.tensor([-1.5, -0.3, -0.05, 0.05, 0.3, 1.5], dtype=torch.float64).reshape(1, 1, 2, 3)
    end = sample(
        run,
        start * run.init_noise_sigma,
        lambda run, i, x: torch.tanh(run.levels[i].alpha * x / run.levels[i].sigma ** 2),
        noise=noise,
    )
    # DEIS and SA-Solver end at the least σ, as in the reference; PNDM's fixed weights suit an even grid.
    reach = {"DEISMultistepScheduler": 0.03, "SASolverScheduler": 0.03, "PNDMScheduler": 0.15}.get(name, 1e-3)
    torch.testing.assert_close(end.abs(), torch.ones_like(end), rtol=0, atol=reach)
    if not drawn:
        assert torch.equal(end.sign(), start.sign())


def test_the_default_grids_of_ddim_and_pndm_reach_the_point_too():
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for scheduler, steps in itertools.product(
        [DDIMScheduler(clip_sample=False), PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True)], (1, 2, 5, 50)
    ):
        run = scheduler.plan(steps)
        x = run.add_noise(point, torch.randn_like(point), 0)
        torch.testing.assert_close(sample(run, x, lambda *_: point), point, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "config", [{"clip_sample": False}, {}, {"thresholding": True, "sample_max_value": 3.0}], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_epsilon_v_and_x0_forms_agree(name, config):
    make = getattr(langevin, name)
    config = {key: value for key, value in config.items() if key in make._settings_names()}
    if name == "PNDMScheduler":
        config["skip_prk_steps"] = True
    ends = []
    for form in FORMS:
        if form not in make.prediction_types:
            continue
        scheduler = make(prediction_type=form, **config)
        run = scheduler.plan(9, **({"as_published": True} if name == "PNDMScheduler" else {}))
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) * run.init_noise_sigma

        def noise(like, generator=generator):
            return torch.randn(like.shape, generator=generator, dtype=like.dtype)

        ends.append(sample(run, x, gaussian_belief(0.3, 0.8), form, noise=noise))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("scheduler", "options", "order"),
    [
        (DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), {"as_published": True}, 1.0),
        (EulerDiscreteScheduler(use_karras_sigmas=True), {}, 1.0),
        (EulerDiscreteScheduler(), {}, 0.8),
        (PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True), {}, 1.4),
        (PNDMScheduler(set_alpha_to_one=True), {}, 1.4),
        (HeunDiscreteScheduler(use_karras_sigmas=True), {}, 2.0),
        (LMSDiscreteScheduler(use_karras_sigmas=True), {"order": 2}, 1.9),
        (DPMSolverMultistepScheduler(use_karras_sigmas=True, solver_order=2, lower_order_final=False), {}, 1.8),
        (UniPCMultistepScheduler(use_karras_sigmas=True), {}, 1.8),
    ],
)
def test_error_falls_as_fast_as_the_solver_promises(scheduler, options, order):
    errors = [ode_error(scheduler, steps, **options) for steps in (25, 50, 100)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(measured) > order - 0.15, (errors, measured)


def test_ddpm_and_stochastic_ddim_give_the_right_mean_and_spread():
    torch.manual_seed(0)
    mean, deviation = 0.4, 0.7
    runs = {
        "ddpm": DDPMScheduler(clip_sample=False).plan(250),
        "ddpm, spaced by karras": DDPMScheduler(clip_sample=False).with_spacing("karras").plan(250),
        "ddim eta=1": DDIMScheduler(clip_sample=False).plan(250, eta=1.0),
        "ddim eta=0.5": DDIMScheduler(clip_sample=False).plan(100, eta=0.5),
        "euler ancestral": EulerAncestralDiscreteScheduler().with_spacing("karras").plan(250),
        "sde-dpmsolver++": DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True).plan(
            100
        ),
        "euler with churn": EulerDiscreteScheduler(use_karras_sigmas=True).plan(100, s_churn=5.0),
    }
    for name, run in runs.items():
        x = torch.randn(20000, dtype=torch.float64).reshape(1, 1, 100, 200) * run.init_noise_sigma
        end = sample(run, x, gaussian_belief(mean, deviation))
        assert end.mean().item() == pytest.approx(mean, abs=0.03), name
        assert end.std().item() == pytest.approx(deviation, rel=0.05), name


def test_variances_are_those_of_the_papers():
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    def variance(kind, i, v=None):
        run = DDPMScheduler(clip_sample=False, variance_type=kind).plan(100)
        output = zero if v is None else torch.cat([zero, zero + v], 1)
        return run.step(output, i, zero, torch.ones_like).prev_sample.item() ** 2

    noise = DDPMScheduler().noise_schedule
    for i, (t, before) in {3: (960, 950), 98: (10, 0)}.items():
        beta = 1 - noise.alpha_bar[t] / noise.alpha_bar[before]
        tilde = (1 - noise.alpha_bar[before]) / (1 - noise.alpha_bar[t]) * beta
        for kind in ("fixed_small", "fixed_small_log"):
            assert variance(kind, i) == pytest.approx(tilde, rel=1e-4)
        for kind in ("fixed_large", "fixed_large_log"):
            assert variance(kind, i) == pytest.approx(beta, rel=1e-4)
        assert variance("learned", i, 0.25) == pytest.approx(0.25)
        assert variance("learned_range", i, -1.0) == pytest.approx(tilde, rel=1e-4)
        assert variance("learned_range", i, 1.0) == pytest.approx(beta, rel=1e-4)
        assert variance("learned_range", i, 0.0) == pytest.approx(math.sqrt(beta * tilde), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_nan(name):
    make = getattr(langevin, name)
    keys = make()._settings_names()
    grid = {
        "rescale_betas_zero_snr": (False, True),
        "prediction_type": FORMS,
        "clip_sample": (False, True),
        "skip_prk_steps": (True,),
        "final_sigmas_type": ("zero", "sigma_min"),
        "beta_schedule": ("linear", "squaredcos_cap_v2"),
        "set_alpha_to_one": (True, False),
    }
    grid = {key: values for key, values in grid.items() if key in keys}
    for values in itertools.product(*grid.values()):
        config = dict(zip(grid, values, strict=True))
        if config["prediction_type"] not in make.prediction_types:
            continue
        for spacing, steps in itertools.product(SPACINGS, (1, 2, 7)):
            scheduler = make(**config).with_spacing(spacing)
            for option in [{}, *({name: 1.0} for name in ("eta", "s_churn") if name in make.run_options)]:
                run = scheduler.plan(steps, **option)
                blind = run.levels[0].alpha == 0.0 and config["prediction_type"] == "epsilon"
                if blind and not config.get("clip_sample"):
                    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
                        run.step(torch.zeros(1, 1, 1, 1), 0, torch.zeros(1, 1, 1, 1))
                    continue
                x = torch.linspace(-3, 3, 4).reshape(1, 1, 2, 2) * run.init_noise_sigma
                for i in range(len(run)):
                    out = run.step(torch.tanh(run.scale_model_input(x, i)), i, x)
                    x = out.prev_sample
                    for tensor in (x, out.pred_original_sample):
                        assert tensor.isfinite().all(), (config, spacing, steps, i)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (DDIMScheduler(), {}),
        (DDIMScheduler(thresholding=True), {"eta": 1.0}),
        (DDPMScheduler(), {}),
        (PNDMScheduler(), {}),
        (PNDMScheduler(skip_prk_steps=True), {}),
        (EulerDiscreteScheduler(), {"s_churn": 5.0}),
        (EulerAncestralDiscreteScheduler(), {}),
        (HeunDiscreteScheduler(clip_sample=True), {}),
        (LMSDiscreteScheduler(), {}),
        (UniPCMultistepScheduler(solver_order=3, thresholding=True), {}),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3, thresholding=True), {}),
    ],
)
def test_a_step_never_looks_at_the_numbers(scheduler, options):
    """Tensors on the meta device have no numbers: .item() or a branch on a value would raise. So no step waits for a
    device, and a run can be captured in a CUDA graph."""
    run = scheduler.plan(6, **options)
    x = torch.empty(1, 3, 4, 4, device="meta")
    for i in range(len(run)):
        run.add_noise(x, x, i)
        out = run.step(run.scale_model_input(x, i), i, x, torch.empty_like)
        assert out.pred_original_sample.shape == x.shape
        x = out.prev_sample


@pytest.mark.parametrize(
    ("scheduler", "options", "calls"),
    [
        (DDIMScheduler(), {}, 0),
        (DDIMScheduler(), {"eta": 0.5}, 10),
        (DDPMScheduler(), {}, 9),  # none into timestep 0
        (DDPMScheduler(timestep_spacing="trailing"), {}, 10),  # ends at timestep 99
        (PNDMScheduler(), {}, 0),
        (EulerDiscreteScheduler(), {}, 0),
        (EulerAncestralDiscreteScheduler(), {}, 10),
        (HeunDiscreteScheduler(), {}, 0),
        (LMSDiscreteScheduler(), {}, 0),
        (UniPCMultistepScheduler(), {}, 0),
        (DPMSolverMultistepScheduler(), {}, 0),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), {}, 10),
        (EulerDiscreteScheduler(), {"s_churn": 1.0}, 10),
        (EulerDiscreteScheduler(), {"s_churn": 1.0, "s_tmin": 0.5, "s_tmax": 30.0}, 6),
    ],
)
def test_noise_is_drawn_only_when_needed(scheduler, options, calls):
    drawn = []

    def noise(like):
        drawn.append(like.shape)
        return torch.zeros_like(like)

    run = scheduler.plan(10, **options)
    x = torch.ones(2, 3, 2, 2)
    for i in range(len(run)):
        x = run.step(x, i, x, noise).prev_sample
    assert drawn == [(2, 3, 2, 2)] * calls
