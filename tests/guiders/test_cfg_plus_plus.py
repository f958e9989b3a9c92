"""CFG++: the guided image, the negative branch's noise."""

from __future__ import annotations

import math

import pytest
import torch

from langevin import (
    CFGPlusPlus,
    ClassifierFreeGuidance,
    DDIMScheduler,
    DPMSolver3MSDEScheduler,
    DPMSolverMultistepScheduler,
    ERSDEScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    GradientEstimationScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    RESMultistepScheduler,
    UniPCMultistepScheduler,
)
from langevin.loop import denoise
from langevin.pipelines.call import compose_guiders
from langevin.schedulers import prediction

FORMS = ["epsilon", "v_prediction", "sample"]


def image(x, level, branch):
    """x0 as a branch believes in it; x in σ."""
    shift = {"positive": 0.4, "negative": -0.3}[branch]
    return torch.tanh(0.6 * x / level.alpha / math.hypot(level.ratio, 1.0) + shift) + 0.1 * x.roll(1, -1).sin()


def output(form, x0, x, level):
    """What a network says that believes in x0."""
    p, q = prediction.to_x0(form, level)
    return (x0 - p * x) / q


def noises(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)


def guided(run, guider, asked=None):
    """A pass through the loop; the last x, and the x after every step."""
    draws, path = noises(), []
    place = iter(range(len(run)))
    start = draws() * run.init_noise_sigma

    def denoiser(x, t, branches, attention=None):
        i = next(place)
        x = x / (1.0 / math.hypot(run.levels[i].sigma, 1.0) if run.levels[i].alpha == 1.0 else 1.0)
        if asked is not None:
            asked.append(sorted(branches))
        level = run.levels[i]
        return {name: output(run.prediction_type, image(x, level, name), x, level) for name in branches}

    branches = {"positive": {}, "negative": {}}
    denoise(start, run, denoiser, branches, [guider.begin()], noise=draws, on_step=lambda _, x: (path.append(x), x)[1])
    return start, path


def algorithm_2(run, scale):
    """x ← α_next·x0(guided) + σ_next·ε(negative)."""
    x, path = noises()() * run.init_noise_sigma, []
    for level, target in zip(run.levels, run.targets, strict=True):
        positive, negative = (image(x, level, branch) for branch in ("positive", "negative"))
        epsilon = (x - level.alpha * negative) / level.sigma
        x = target.alpha * (negative + scale * (positive - negative)) + target.sigma * epsilon
        path.append(x)
    return path


def by_moving_x(run, scale):
    """The same for any solver: it is handed an x that has the guided image and the negative branch's noise in it."""
    draws = noises()
    x, path = draws() * run.init_noise_sigma, []
    for i, level in enumerate(run.levels):
        positive, negative = (image(x, level, branch) for branch in ("positive", "negative"))
        x0 = negative + scale * (positive - negative)
        x = x + level.alpha * (x0 - negative)
        x = run.step(output(run.prediction_type, x0, x, level), i, x, draws).prev_sample
        path.append(x)
    return path


def agree(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_ddim_and_euler_follow_algorithm_2(form, scale):
    for scheduler in (
        DDIMScheduler(prediction_type=form, clip_sample=False, timestep_spacing="trailing"),
        EulerDiscreteScheduler(prediction_type=form, use_karras_sigmas=True),
    ):
        agree(guided(scheduler.plan(8), CFGPlusPlus(scale))[1], algorithm_2(scheduler.plan(8), scale))


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (DDIMScheduler(clip_sample=False), {"eta": 0.6}),
        (DDIMScheduler(clip_sample=False), {"eta": 1.0}),
        (EulerAncestralDiscreteScheduler(), {}),
        (DPMSolverMultistepScheduler(), {}),
        (DPMSolverMultistepScheduler(solver_order=3, algorithm_type="sde-dpmsolver++"), {}),
        (DPMSolver3MSDEScheduler(), {"eta": 0.4}),
        (RESMultistepScheduler(), {"eta": 0.5}),
        (ERSDEScheduler(), {}),
    ],
)
def test_other_solvers_move_x_to_the_guided_image(scheduler, options):
    agree(guided(scheduler.plan(8, **options), CFGPlusPlus(0.6))[1], by_moving_x(scheduler.plan(8, **options), 0.6))


def test_a_scale_of_zero_is_the_negative_branch_alone():
    class Negative(ClassifierFreeGuidance):
        def needs(self, step):
            return ("negative",)

        def combine(self, prediction, predictions, x, step):
            return predictions["negative"]

    for make in (DDIMScheduler, EulerDiscreteScheduler):
        agree(*(guided(make().plan(6), guider)[1] for guider in (CFGPlusPlus(0.0), Negative())))


def test_outside_its_share_of_the_run_it_does_nothing():
    asked = []
    run = EulerDiscreteScheduler().plan(10)
    guided(run, CFGPlusPlus(0.6, start=0.2, stop=0.5), asked)
    assert [len(names) for names in asked] == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (HeunDiscreteScheduler(), {}),
        (LMSDiscreteScheduler(), {}),
        (UniPCMultistepScheduler(), {}),
        (GradientEstimationScheduler(), {}),
        (EulerDiscreteScheduler(), {"s_churn": 5.0}),
        (DDIMScheduler(), {"use_clipped_model_output": True}),
        (DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"), {}),
    ],
)
def test_solvers_whose_steps_are_more_than_x0_and_epsilon_are_refused(scheduler, options):
    run = scheduler.plan(5, **options)
    with pytest.raises(ValueError, match=f"{type(run).__name__}.*DDIMScheduler"):
        guided(run, CFGPlusPlus(0.6))


def test_it_takes_the_place_of_the_usual_guidance():
    own = CFGPlusPlus(0.5)
    assert compose_guiders(7.5, 0.0, [own]) == [own]
    with pytest.raises(ValueError, match=r"scale=7\.5"):
        CFGPlusPlus(7.5)
