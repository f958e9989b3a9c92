"""What holds for every scheduler there is, also for those that take nobody's place."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import langevin
from langevin.schedulers.discrete.vq_diffusion import draw_uniform
from tests.schedulers.meaning_checks import gaussian_belief, sample
from tests.schedulers.scheduler_checks import EVERY, FLOW_FORMS, SHAPE, SPACINGS, begin, network

CODES = {"num_vec_classes": 17}
INVERSIONS = [name for name in EVERY if "Inverse" in name]
CONTINUOUS = [name for name in EVERY if name != "VQDiffusionScheduler"]
NOT_BOUNDED = {"clip_sample": False, "clip_denoised": False, "skip_prk_steps": True}


SLACK = {
    "LCMScheduler": lambda run: 1e-7 + 5 * run.skips[-1][0],  # what its consistency function keeps of x
    "UnCLIPScheduler": lambda run: 1e-3,  # β are rounded to fp32, as in the reference
}


def make(name: str, **config):
    cls = getattr(langevin, name)
    config = {"num_vec_classes": 17, **config} if name == "VQDiffusionScheduler" else config
    return cls(**{key: value for key, value in config.items() if key in cls._settings_names()})


def plan(scheduler, steps: int):
    options = {"as_published": True} if "as_published" in scheduler.run_options else {}
    return scheduler.plan(steps, **options)


def places(scheduler, steps: int) -> list[int]:
    """Calls at which a run may begin."""
    if type(scheduler).__name__ == "DPMAdaptiveScheduler":  # whose run grows while it goes
        return [0]
    calls = len(plan(scheduler, steps))
    return sorted({k - k % scheduler.order for k in (0, 1, calls // 2, calls - 1) if k < calls})


def told(run, i: int, x: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The output of a network that believes in x0; where x is x0 itself, it knows the noise."""
    if run.prediction_type in ("score", "negative_epsilon"):
        return (x0 - x) / run.levels[i].sigma ** (2 if run.prediction_type == "score" else 1)
    p, q = run.to_x0(run.levels[i])
    return (x0 - p * x) / q if q else noise


# Its steps are Euler and Maruyama's, exact only as they get short.
@pytest.mark.parametrize("name", [name for name in CONTINUOUS if name != "ScoreSdeVpScheduler"])
def test_add_noise_then_a_perfect_prediction_gives_back_the_original_from_any_start(name):
    """And where a run ends in noise, it is at the level that ``add_noise`` gives after the last call."""
    torch.manual_seed(0)
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    scheduler = make(name, **NOT_BOUNDED)
    for steps in (1, 2, 3, 7, 20, 50):
        if steps > getattr(scheduler.config, "num_train_timesteps", steps):
            continue
        for start in places(scheduler, steps):
            run, z, drawn = plan(scheduler, steps), torch.randn_like(point), []

            def noise(like, drawn=drawn):
                drawn.append(like)
                return torch.randn_like(like)

            x, i = run.add_noise(point, z, start), start
            while i < len(run):
                x = run.step(told(run, i, x, point, z), i, x, noise).prev_sample
                i += 1
            alpha, sigma = run.targets[-1]
            reach = SLACK.get(name, lambda run: 1e-7)(run) * max(1.0, sigma)
            # Where noise was drawn, the one at the end is not the one at the beginning. A consistency model gives x0
            # where it was taught to be at σ_min.
            if drawn or name == "CMStochasticIterativeScheduler":
                torch.testing.assert_close(x, alpha * point, rtol=0, atol=reach + 6 * sigma)
            else:
                torch.testing.assert_close(x, run.add_noise(point, z, len(run)), rtol=0, atol=reach)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_after_the_last_call_noise_is_that_of_the_level_where_the_run_ends(name):
    point, z = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 2, 2)
    run = plan(make(name), 7)
    alpha, sigma = run.targets[-1]
    torch.testing.assert_close(run.add_noise(point, z, len(run)), alpha * point + sigma * z)
    if name in INVERSIONS:
        assert sigma / alpha > 10
    else:
        assert sigma / alpha < 0.05
    if (alpha, sigma) == (1.0, 0.0):
        assert run.add_noise(point, z, len(run)) is point


def test_a_run_that_ends_in_the_middle_ends_there_for_add_noise_too():
    point, z = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    for name, least in (("EulerDiscreteScheduler", 2.0), ("DDIMScheduler", 2.0 / 5**0.5)):
        run = make(name).plan(sigmas=[14.0, 5.0, 2.0])
        assert run.add_noise(point, z, 2).mean().item() == pytest.approx(least)
    least = make("DDIMScheduler", set_alpha_to_one=False).plan(5).add_noise(point, z, 5).mean().item()
    assert 0.0 < least < 0.02


def test_euler_and_maruyama_come_to_the_point_as_steps_get_short():
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for spacing, start in itertools.product((None, "karras", "sgm_uniform"), (0, 300)):
        scheduler = make("ScoreSdeVpScheduler")
        run = (scheduler if spacing is None else scheduler.with_spacing(spacing)).plan(600)
        x = run.add_noise(point, torch.randn_like(point), start)
        for i in range(start, len(run)):
            x = run.step(told(run, i, x, point, point), i, x, torch.randn_like).prev_sample
        torch.testing.assert_close(x, point, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "name", [name for name in EVERY if "use_flow_sigmas" in getattr(langevin, name)._settings_names()]
)
def test_as_published_forms_agree_on_straight_lines_too(name):
    """By default v is read there as the reference does, as if it were on a variance-preserving level."""
    ends, reference_like = [], None
    for form in FLOW_FORMS:
        scheduler = make(name, prediction_type=form, use_flow_sigmas=True, flow_shift=2.0)
        x, belief = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(1, 2, 2, 2), gaussian_belief(0.3, 0.8)
        ends.append(sample(scheduler.plan(9, as_published=True), x, belief, form, noise=torch.zeros_like))
        if form == "v_prediction":
            reference_like = sample(scheduler.plan(9), x, belief, form, noise=torch.zeros_like)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-8, atol=1e-8)
    assert (reference_like - ends[0]).abs().max() > 1e-2


# -- many threads ----------------------------------------------------------------------------------------------------


def walk(scheduler, run, start: int, seed: int) -> list[torch.Tensor]:
    """Everything a pass through ``run`` makes, its noise from a seed."""
    if type(scheduler).__name__ == "VQDiffusionScheduler":
        generator, x = torch.Generator().manual_seed(seed), torch.full((2, 30), 16)

        def output(x, t):
            return torch.sin(0.7 * x.unsqueeze(1) + 0.01 * t + torch.arange(16.0).view(1, -1, 1)).log_softmax(1)

        def noise(like):
            return draw_uniform(like, generator)
    else:
        x, generator = begin(SHAPE, run.init_noise_sigma, seed, torch.float32)
        output = network

        def noise(like):
            return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    path, i = [x], start
    while i < len(run):
        out = run.step(output(run.scale_model_input(x, i), run.timesteps[i]), i, x, noise)
        x = out.prev_sample
        path += [x, out.pred_original_sample]
        i += 1
    return path


@pytest.mark.parametrize("name", EVERY)
def test_eight_threads_on_one_scheduler_give_what_one_gives(name):
    scheduler = make(name)
    before = dict(vars(scheduler))
    late = scheduler.order if name != "DPMAdaptiveScheduler" else 0

    def job(k):
        option = {"eta": 0.5} if "eta" in scheduler.run_options and k % 2 else {}
        option |= {"jump_n_sample": 2} if name == "RePaintScheduler" else {}
        return walk(scheduler, scheduler.plan(12 + k % 3, **option), late * (k % 2), k)

    serial = [job(k) for k in range(16)]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(job, range(16)))
    for one, other in zip(serial, threaded, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert any(not torch.equal(serial[0][-1], other[-1]) for other in serial[1:])
    assert vars(scheduler) == before


# -- any spacing -----------------------------------------------------------------------------------------------------

ONE_KIND = {"VQDiffusionScheduler": ("karras", "σ"), "ScoreSdeVeScheduler": ("leading", "timesteps"),
            "KarrasVeScheduler": ("leading", "timesteps")}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_any_spacing_with_any_scheduler(name):
    for spacing, steps in itertools.product(SPACINGS, (1, 2, 7)):
        scheduler = make(name, skip_prk_steps=True)
        if spacing not in scheduler._spacings:
            continue
        spaced = scheduler.with_spacing(spacing)
        assert type(spaced).from_config(spaced.config)._spacing == (spacing, {})
        run = spaced.plan(steps)
        for part in walk(spaced, run, 0, 1):
            assert part.isfinite().all(), (spacing, steps)


@pytest.mark.parametrize("name", ONE_KIND)
def test_a_spacing_that_does_not_fit_is_refused_at_once_and_says_why(name):
    spacing, word = ONE_KIND[name]
    with pytest.raises(ValueError, match=f"'{spacing}' does not fit {name}.*{word}"):
        make(name).with_spacing(spacing)
    foreign = langevin.DDIMScheduler().with_spacing(spacing).config
    with pytest.raises(ValueError, match="does not fit"):
        type(make(name)).from_config({**foreign, **CODES}).plan(5)
