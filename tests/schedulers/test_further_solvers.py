"""Solvers that the reference lacks: against their published algorithms, written down once more as a loop over σ."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import langevin
from langevin import (
    DPMAdaptiveScheduler,
    DPMFastScheduler,
    DPMSolver2SAncestralScheduler,
    DPMSolver3MSDEScheduler,
    DPMSolverMultistepScheduler,
    ERSDEScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    GradientEstimationScheduler,
    HeunDiscreteScheduler,
    HeunPP2Scheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    RESMultistepScheduler,
    RestartScheduler,
)
from langevin.denoiser import NetworkDenoiser
from langevin.loop import denoise
from tests.schedulers.meaning_checks import FORMS, gaussian_belief, told
from tests.schedulers.scheduler_checks import distance, familiar, planned

FURTHER = [
    DPMAdaptiveScheduler,
    DPMFastScheduler,
    DPMSolver2SAncestralScheduler,
    DPMSolver3MSDEScheduler,
    ERSDEScheduler,
    GradientEstimationScheduler,
    HeunPP2Scheduler,
    RESMultistepScheduler,
    RestartScheduler,
]
ENDS = ("zero", "sigma_min")

# -- the published algorithms ----------------------------------------------------------------------------------------
# D(x, σ) is the denoised image; t = -log σ; z() draws noise. Each is the paper's listing, or k-diffusion's, in fp64.


def slope(x, sigma, denoised):
    return (x - denoised) / sigma


def ancestral(sigma_from, sigma_to, eta):
    up = min(sigma_to, eta * math.sqrt(sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2))
    return math.sqrt(sigma_to**2 - up**2), up


def dpmpp_2s_ancestral(D, x, sigmas, z, eta=1.0, s_noise=1.0):
    for sigma, following in itertools.pairwise(sigmas):
        down, up = ancestral(sigma, following, eta)
        denoised = D(x, sigma)
        if down == 0:
            x = x + slope(x, sigma, denoised) * (down - sigma)
        else:
            t, t_next = -math.log(sigma), -math.log(down)
            h = t_next - t
            s = t + h / 2
            x_2 = math.exp(-s) / math.exp(-t) * x - math.expm1(-h / 2) * denoised
            x = math.exp(-t_next) / math.exp(-t) * x - math.expm1(-h) * D(x_2, math.exp(-s))
        if following > 0 and eta > 0:
            x = x + z() * s_noise * up
    return x


def dpmpp_3m_sde(D, x, sigmas, z, eta=1.0, s_noise=1.0):
    d1 = d2 = h1 = h2 = None
    for sigma, following in itertools.pairwise(sigmas):
        denoised = D(x, sigma)
        if following == 0:
            x = denoised
            continue
        h = math.log(sigma) - math.log(following)
        he = h * (eta + 1)
        x = math.exp(-he) * x - math.expm1(-he) * denoised
        phi2 = math.expm1(-he) / he + 1
        if h2 is not None:
            r0, r1 = h1 / h, h2 / h
            near, far = (denoised - d1) / r0, (d1 - d2) / r1
            first = near + (near - far) * r0 / (r0 + r1)
            second = (near - far) / (r0 + r1)
            x = x + phi2 * first - (phi2 / he - 0.5) * second
        elif h1 is not None:
            x = x + phi2 * (denoised - d1) / (h1 / h)
        if eta:
            x = x + z() * following * math.sqrt(-math.expm1(-2 * h * eta)) * s_noise
        d1, d2, h1, h2 = denoised, d1, h, h1
    return x


def gradient_estimation(D, x, sigmas, z, gamma=2.0):
    old = None
    for sigma, following in itertools.pairwise(sigmas):
        denoised = D(x, sigma)
        d = slope(x, sigma, denoised)
        if following == 0:
            x = denoised
        else:
            mean = d if old is None else gamma * d + (1 - gamma) * old
            x = x + mean * (following - sigma)
        old = d
    return x


def heunpp2(D, x, sigmas, z):
    for i in range(len(sigmas) - 1):
        d = slope(x, sigmas[i], D(x, sigmas[i]))
        dt = sigmas[i + 1] - sigmas[i]
        if i == len(sigmas) - 2:
            x = x + d * dt
            continue
        x_2 = x + d * dt
        d_2 = slope(x_2, sigmas[i + 1], D(x_2, sigmas[i + 1]))
        if i == len(sigmas) - 3:
            w2 = sigmas[i + 1] / (2 * sigmas[0])
            x = x + ((1 - w2) * d + w2 * d_2) * dt
            continue
        x_3 = x_2 + d_2 * (sigmas[i + 2] - sigmas[i + 1])
        d_3 = slope(x_3, sigmas[i + 2], D(x_3, sigmas[i + 2]))
        w2, w3 = sigmas[i + 1] / (3 * sigmas[0]), sigmas[i + 2] / (3 * sigmas[0])
        x = x + ((1 - w2 - w3) * d + w2 * d_2 + w3 * d_3) * dt
    return x


def res_multistep(D, x, sigmas, z, eta=0.0, s_noise=1.0):
    old = t_old = t_down = None
    for sigma, following in itertools.pairwise(sigmas):
        down, up = ancestral(sigma, following, eta)
        denoised = D(x, sigma)
        if down == 0 or old is None:
            x = x + slope(x, sigma, denoised) * (down - sigma)
        else:
            t = -math.log(sigma)
            h = -math.log(down) - t
            c2 = (t_old - t_down) / h
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1) / -h
            x = math.exp(-h) * x + h * ((phi1 - phi2 / c2) * denoised + phi2 / c2 * old)
        if up:
            x = x + z() * s_noise * up
        old, t_old, t_down = denoised, -math.log(sigma), -math.log(down) if down else None
    return x


def er_sde(D, x, sigmas, z, phi, order=3, s_noise=1.0):
    old = old_d = None
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        denoised = D(x, sigma)
        if following == 0:
            x = denoised
            continue
        r = phi(following) / phi(sigma)
        x_next = r * x + (1 - r) * denoised
        edges = np.geomspace(following, sigma, 4001)
        middle, width = np.sqrt(edges[1:] * edges[:-1]), np.diff(edges)
        d = None
        if old is not None and order > 1:
            d = (denoised - old) / (sigma - sigmas[i - 1])
            x_next = x_next + (following - sigma + float((width / phi(middle)).sum()) * phi(following)) * d
        if old_d is not None and order > 2:
            dd = 2 * (d - old_d) / (sigma - sigmas[i - 2])
            s = float(((middle - sigma) / phi(middle) * width).sum())
            x_next = x_next + ((following - sigma) ** 2 / 2 + s * phi(following)) * dd
        rest = following**2 - sigma**2 * r**2
        if rest > 1e-12:
            x_next = x_next + z() * s_noise * math.sqrt(rest)
        x, old, old_d = x_next, denoised, d
    return x


def heun(D, x, sigma, following):
    d = slope(x, sigma, D(x, sigma))
    x_2 = x + d * (following - sigma)
    if following == 0:
        return x_2
    return x + (d + slope(x_2, following, D(x_2, following))) / 2 * (following - sigma)


def restart(D, x, sigmas, z, low, high, steps, times, s_noise=1.0):
    """Algorithm 1 with one interval, whose ends are among ``sigmas``."""
    for sigma, following in itertools.pairwise(sigmas):
        x = heun(D, x, sigma, following)
        if following == low:
            for _ in range(times):
                x = x + s_noise * math.sqrt(high**2 - low**2) * z()
                ramp = np.linspace(high ** (1 / 7), low ** (1 / 7), steps + 1) ** 7
                for a, b in itertools.pairwise(ramp.tolist()):
                    x = heun(D, x, a, b)
    return x


def dpm_1(eps, x, t, t_next, known):
    return x - math.exp(-t_next) * math.expm1(t_next - t) * eps(known, 0, x, t)


def dpm_2(eps, x, t, t_next, known, r1=0.5):
    h = t_next - t
    e = eps(known, 0, x, t)
    s = t + r1 * h
    e_1 = eps(known, 1, x - math.exp(-s) * math.expm1(r1 * h) * e, s)
    scale = math.exp(-t_next) * math.expm1(h)
    return x - scale * e - scale / (2 * r1) * (e_1 - e)


def dpm_3(eps, x, t, t_next, known, r1=1 / 3, r2=2 / 3):
    h = t_next - t
    e = eps(known, 0, x, t)
    s1, s2 = t + r1 * h, t + r2 * h
    e_1 = eps(known, 1, x - math.exp(-s1) * math.expm1(r1 * h) * e, s1)
    u_2 = x - math.exp(-s2) * math.expm1(r2 * h) * e
    u_2 = u_2 - math.exp(-s2) * (r2 / r1) * (math.expm1(r2 * h) / (r2 * h) - 1) * (e_1 - e)
    e_2 = eps(known, 2, u_2, s2)
    scale = math.exp(-t_next)
    return x - scale * math.expm1(h) * e - scale / r2 * (math.expm1(h) / h - 1) * (e_2 - e)


def remembering(D):
    def eps(known, key, x, t):
        if key not in known:
            known[key] = slope(x, math.exp(-t), D(x, math.exp(-t)))
        return known[key]

    return eps


def dpm_fast(D, x, sigma_max, sigma_min, calls, z, eta=0.0):
    eps, end = remembering(D), -math.log(sigma_min)
    m = calls // 3 + 1
    ts = np.linspace(-math.log(sigma_max), end, m + 1).tolist()
    orders = [3] * (m - 2) + [2, 1] if calls % 3 == 0 else [3] * (m - 1) + [calls % 3]
    for order, (t, t_next) in zip(orders, itertools.pairwise(ts), strict=True):
        aim, up = t_next, 0.0
        if eta:
            aim = min(end, -math.log(ancestral(math.exp(-t), math.exp(-t_next), eta)[0]))
            up = math.sqrt(max(math.exp(-2 * t_next) - math.exp(-2 * aim), 0.0))
        x = (dpm_1, dpm_2, dpm_3)[order - 1](eps, x, t, aim, {})
        if up > 1e-9:
            x = x + up * z()
    return x


def dpm_adaptive(
    D, x, sigma_max, sigma_min, z, order=3, rtol=0.05, atol=0.0078, h=0.05, pid=(0.0, 1.0, 0.0), safety=0.81, eta=0.0
):
    s, end = -math.log(sigma_max), -math.log(sigma_min)
    p, i, d = pid
    divisor = 1.5 if eta else order
    errors, previous, eps, known = [], x, remembering(D), {}
    while s < end - 1e-5:
        t = min(end, s + h)
        aim, up = t, 0.0
        if eta:
            aim = min(end, -math.log(ancestral(math.exp(-s), math.exp(-t), eta)[0]))
            up = math.sqrt(math.exp(-2 * t) - math.exp(-2 * aim))
        if order == 2:
            low, high = dpm_1(eps, x, s, aim, known), dpm_2(eps, x, s, aim, known)
        else:
            low, high = dpm_2(eps, x, s, aim, known, r1=1 / 3), dpm_3(eps, x, s, aim, known)
        scale = torch.maximum(torch.tensor(atol, dtype=x.dtype), rtol * torch.maximum(low.abs(), previous.abs()))
        inverse = 1 / (float(torch.linalg.norm((low - high) / scale)) / x.numel() ** 0.5 + 1e-8)
        errors = [inverse, *errors[1:]] if errors else [inverse] * 3
        factor = (
            errors[0] ** ((p + i + d) / divisor) * errors[1] ** (-(p + 2 * d) / divisor) * errors[2] ** (d / divisor)
        )
        factor = 1 + math.atan(factor - 1)
        h *= factor
        if factor >= safety:
            errors = [errors[0], errors[0], errors[1]]
            previous, x, s, known = low, high + (up * z() if up else 0.0), t, {}
        else:
            known = {0: known[0]}
    return x


# -- ours beside them ------------------------------------------------------------------------------------------------


def image(x, sigma):
    """A denoiser: not linear, different at every place and σ."""
    return 0.6 * torch.tanh(0.7 * x / math.sqrt(1 + sigma**2) + 0.1 * math.log(sigma)) + 0.1 * x.roll(1, -1).sin()


class Watched:
    """``image``, and what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, sigma):
        self.asked.append((sigma, x))
        return image(x, sigma)


def noises(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)


def ours(run, form="epsilon", seed=0):
    """(what the network was asked at every call, the end, the first x) of a run of ours."""
    draws = noises(seed)
    x = first = draws() * run.init_noise_sigma
    D, i = Watched(), 0
    while i < len(run):
        sigma = run.levels[i].sigma
        denoised = D(x, sigma)
        out = run.step(told(form, denoised, run, i, x), i, x, draws)
        torch.testing.assert_close(out.pred_original_sample, denoised, rtol=1e-9, atol=1e-9)
        x, i = out.prev_sample, i + 1
    return D.asked, x, first


def same_as_published(run, published, *args, form="epsilon", tolerance=1e-9, **options):
    asked, end, first = ours(run, form)
    draws, D = noises(0), Watched()
    draws()
    expected = published(D, first, *args, draws, **options)
    if run.sigmas[-1] == 0.0 and published in (dpm_fast, dpm_adaptive):  # which end at σ_min
        expected = D(expected, run.levels[-1].sigma)
    assert [sigma for sigma, _ in asked] == pytest.approx(
        [sigma for sigma, _ in D.asked], rel=max(tolerance / 10, 1e-9)
    )
    for (_, mine), (_, theirs) in zip(asked, D.asked, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(end, expected, rtol=tolerance, atol=tolerance)


# k-diffusion takes σ_down from a root in which it cancels
CASES = [
    (DPMSolver2SAncestralScheduler, dpmpp_2s_ancestral, [{}, {"eta": 0.0}, {"eta": 0.6, "s_noise": 1.03}]),
    (DPMSolver3MSDEScheduler, dpmpp_3m_sde, [{}, {"eta": 0.0}, {"eta": 0.5, "s_noise": 1.03}]),
    (GradientEstimationScheduler, gradient_estimation, [{}, {"gamma": 1.4}]),
    (HeunPP2Scheduler, heunpp2, [{}]),
    (RESMultistepScheduler, res_multistep, [{}, {"eta": 1.0}, {"eta": 0.4, "s_noise": 0.9}]),
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("spacing", ["karras", "trailing", "beta"])
@pytest.mark.parametrize(("make", "published", "grid"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_the_published_algorithm_is_followed_call_by_call(make, published, grid, spacing, end):
    for options, steps, form in itertools.product(grid, (1, 2, 3, 4, 9), FORMS):
        scheduler = make(prediction_type=form, final_sigmas_type=end).with_spacing(spacing)
        sigmas = EulerDiscreteScheduler(final_sigmas_type=end).with_spacing(spacing).plan(steps).sigmas
        if len({f"{sigma:.9f}" for sigma in sigmas}) < len(sigmas):  # a step of no length, of which papers do not speak
            sigmas = sigmas[:-1]
            if len(sigmas) < 2:
                continue
            run = scheduler.plan(sigmas=sigmas, **options)
        else:
            run = scheduler.plan(steps, **options)
        tolerance = 1e-5 if published is dpmpp_2s_ancestral else 1e-9
        same_as_published(run, published, sigmas, form=form, tolerance=tolerance, **options)


@pytest.mark.parametrize(
    ("name", "phi"),
    [
        ("er_sde_5", lambda s: s * (np.exp(s**0.3) + 10.0)),
        ("er_sde_2", lambda s: s**1.5),
        ("sde", lambda s: s**2),
        ("ode", lambda s: s),
    ],
)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_is_followed_call_by_call(name, phi, order):
    for steps, spacing in itertools.product((1, 2, 3, 12), ("karras", "trailing")):
        run = ERSDEScheduler().with_spacing(spacing).plan(steps, order=order, noise_scale=name, s_noise=1.02)
        options = {"phi": phi, "order": order, "s_noise": 1.02}
        same_as_published(run, er_sde, run.sigmas, tolerance=1e-5, **options)  # the test's sums have 4000 terms


def test_er_sde_takes_a_noise_scale_of_your_own():
    runs = [ERSDEScheduler().plan(5, noise_scale=scale) for scale in ("sde", lambda s: s**2)]
    assert runs[0].recipes == runs[1].recipes


@pytest.mark.parametrize(("steps", "interval"), [(12, (0.1, 2.0, 4, 3)), (9, (0.5, 5.0, 1, 1)), (9, (0.5, 5.0, 3, 0))])
def test_restart_is_followed_call_by_call(steps, interval):
    low, high, repeated, times = interval
    for form in FORMS:
        scheduler = RestartScheduler(prediction_type=form, use_karras_sigmas=True)
        sigmas = EulerDiscreteScheduler(use_karras_sigmas=True).plan(steps).sigmas
        low, high = (min(sigmas[:-1], key=lambda sigma, end=end: abs(sigma - end)) for end in (low, high))
        run = scheduler.plan(steps, intervals=[interval], s_noise=1.01)
        assert len(run) == 2 * steps - 1 + 2 * repeated * times
        options = {"low": low, "high": high, "steps": repeated, "times": times, "s_noise": 1.01}
        same_as_published(run, restart, sigmas, form=form, **options)


def test_restart_takes_its_steps_out_of_the_number_asked_for():
    for steps, inside in ((19, 0), (20, 9), (35, 9), (36, 18), (50, 24)):
        sigmas = RestartScheduler(use_karras_sigmas=True).plan(steps).sigmas
        assert len(sigmas) - 1 == 2 * steps - 1
        assert sum(b > a for a, b in itertools.pairwise(sigmas)) == {0: 0, 9: 1, 18: 2, 24: 2}[inside]
    with pytest.raises(ValueError, match="σ_min < σ_max"):
        RestartScheduler().plan(10, intervals=[(2.0, 0.1, 3, 1)])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_dpm_fast_is_followed_call_by_call(eta, end):
    for calls, form in itertools.product((1, 2, 3, 4, 5, 6, 7, 13), FORMS):
        scheduler = DPMFastScheduler(prediction_type=form, final_sigmas_type=end, timestep_spacing="leading")
        run = scheduler.plan(calls, eta=eta)
        assert len(run) == calls
        inner = calls - (end == "zero")
        if inner:
            table = scheduler.noise_schedule.sigmas
            same_as_published(run, dpm_fast, float(table[-1]), float(table[0]), inner, form=form, eta=eta)


ADAPTIVE = [
    {},
    {"order": 2},
    {"rtol": 0.002, "atol": 0.0005},
    {"h_init": 2.0},  # which is rejected
    {"pcoeff": 0.2, "icoeff": 0.6, "dcoeff": 0.1, "accept_safety": 0.9},
    {"eta": 0.5},
]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("options", ADAPTIVE, ids=str)
def test_dpm_adaptive_is_followed_call_by_call(options, end):
    for form in FORMS:
        scheduler = DPMAdaptiveScheduler(prediction_type=form, final_sigmas_type=end)
        run, table = scheduler.plan(1, **options), scheduler.noise_schedule.sigmas
        theirs = {key: value for key, value in options.items() if key in ("order", "rtol", "atol", "eta")}
        if "pcoeff" in options:
            theirs |= {"pid": (0.2, 0.6, 0.1), "safety": 0.9}
        if "h_init" in options:
            theirs["h"] = options["h_init"]
        same_as_published(run, dpm_adaptive, float(table[-1]), float(table[0]), form=form, **theirs)
        assert run.rejected > 0 or "h_init" not in options


def test_every_call_is_told_the_timestep_of_its_level():
    for make in FURTHER:
        scheduler = make()
        run, i = scheduler.plan(13), 0
        x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
        while i < len(run):
            expected = scheduler.noise_schedule.timestep_of(run.levels[i].sigma)
            assert run.timesteps[i] == pytest.approx(expected, abs=0.01)
            x, i = run.step(x, i, x, torch.zeros_like).prev_sample, i + 1


# -- solvers that are each other's limits ----------------------------------------------------------------------------


def same(one, other, sigmas, tolerance=1e-9):
    """Two (scheduler, options): the same x after every call."""
    paths = []
    for scheduler, options in (one, other):
        run, draws = scheduler.plan(sigmas=sigmas, **options), noises(3)
        first = draws()
        x = first * run.levels[0].sigma  # in σ, and in the variance-preserving scale
        path = []
        for i in range(len(run)):
            alpha, sigma = run.levels[i]
            x = run.step(told("epsilon", image(x / alpha, sigma / alpha), run, i, x), i, x, draws).prev_sample
            path.append(x / run.targets[i].alpha)
        paths.append(path)
    assert len(paths[0]) == len(paths[1])
    for a, b in zip(*paths, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


KARRAS = {"use_karras_sigmas": True}
TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
EVEN = np.linspace(12.0, 0.0, 11).tolist()


def multistep(**config):
    return DPMSolverMultistepScheduler(lower_order_final=False, **config)


@pytest.mark.parametrize("spacing", ["karras", "trailing"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((GradientEstimationScheduler(), {"gamma": 1.0}), (EulerDiscreteScheduler(), {})),
        ((RESMultistepScheduler(), {"order": 1}), (EulerDiscreteScheduler(), {})),
        ((RESMultistepScheduler(), {"order": 1, "eta": 1.0}), (EulerAncestralDiscreteScheduler(), {})),
        ((RESMultistepScheduler(), {}), (multistep(solver_type="heun"), {})),
        ((ERSDEScheduler(), {"order": 1, "noise_scale": "ode"}), (EulerDiscreteScheduler(), {})),
        ((ERSDEScheduler(), {"order": 1, "noise_scale": "sde"}), (EulerAncestralDiscreteScheduler(), {})),
        ((DPMSolver3MSDEScheduler(), {"eta": 0.0}), (multistep(solver_type="heun", solver_order=3), {})),
        (
            (DPMSolver3MSDEScheduler(), {}),
            (multistep(solver_type="heun", solver_order=3, algorithm_type="sde-dpmsolver++"), {"as_published": True}),
        ),
        ((RestartScheduler(), {"intervals": []}), (HeunDiscreteScheduler(), {})),
    ],
    ids=lambda pair: type(pair[0]).__name__,
)
def test_in_the_limit_it_is_the_other_solver(one, other, spacing):
    for steps in (1, 2, 9):
        same(one, other, EulerDiscreteScheduler().with_spacing(spacing).plan(steps).sigmas)


def test_gradient_estimation_on_even_levels_is_adams_bashforth():
    ends = []
    for scheduler, options in (
        (GradientEstimationScheduler(), {"gamma": 1.5}),
        (LMSDiscreteScheduler(), {"order": 2, "as_published": True}),
    ):
        run = scheduler.plan(sigmas=EVEN, **options)
        x = noises(0)() * 12
        for i in range(len(run) - 1):  # the last step is first order here
            x = run.step(told("epsilon", image(x, run.levels[i].sigma), run, i, x), i, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


def test_a_single_step_is_eulers():
    for make in FURTHER:
        run = make(sigma_max=0.0292, sigma_min=0.0292).plan(1) if make is DPMAdaptiveScheduler else make().plan(1)
        x = noises(0)()
        out = run.step(told("epsilon", image(x, run.levels[0].sigma), run, 0, x), 0, x, noises(1)).prev_sample
        torch.testing.assert_close(out, image(x, run.levels[0].sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_res_is_exact_where_the_image_is_a_polynomial_in_lambda(order):
    """dx/dλ = D - x; where D is a polynomial, D - D' + D'' solves it, up to a multiple of exp(-λ)."""
    a, b, c = 0.7, -0.4 * (order > 1), 0.3 * (order > 2)
    run = RESMultistepScheduler(use_karras_sigmas=True, prediction_type="sample").plan(8, order=order)
    x = torch.full((1, 1, 1, 1), 9.0, dtype=torch.float64)
    for i in range(len(run) - 1):
        here, there = (-math.log(level.sigma) for level in (run.levels[i], run.targets[i]))

        def particular(at):
            return a + b * at + c * at**2 - b - 2 * c * at + 2 * c

        exact = particular(there) + (x - particular(here)) * math.exp(here - there)
        denoised = a + b * here + c * here**2
        x = run.step(torch.full_like(x, denoised), i, x).prev_sample
        if i >= order - 1:
            torch.testing.assert_close(x, exact, rtol=1e-11, atol=1e-11)


# -- what they must do whatever anybody published --------------------------------------------------------------------


def ode_error(scheduler, steps: int, **options) -> float:
    """Distance from the exact end of the probability-flow ODE of a Gaussian, which is known in closed form."""
    mean, deviation = 0.4, 0.7
    run = scheduler.plan(steps, **options)
    start, end = (math.hypot(sigma, deviation) for sigma in (run.sigmas[0], run.sigmas[-1]))
    x = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8) * start
    return (through(run, gaussian_belief(mean, deviation), x) - mean - end / start * (x - mean)).abs().max().item()


@pytest.mark.parametrize(
    ("scheduler", "options", "order", "steps"),
    [
        (DPMSolver2SAncestralScheduler(**KARRAS, **TO_SIGMA_MIN), {"eta": 0.0}, 2, (25, 50, 100)),
        (DPMSolver3MSDEScheduler(**KARRAS, **TO_SIGMA_MIN), {"eta": 0.0}, 2, (100, 200, 400)),
        (GradientEstimationScheduler(**KARRAS, **TO_SIGMA_MIN), {}, 1, (100, 200, 400)),
        (HeunPP2Scheduler(**KARRAS, **TO_SIGMA_MIN), {}, 1, (50, 100, 200)),
        (RESMultistepScheduler(**KARRAS, **TO_SIGMA_MIN), {}, 2, (25, 50, 100)),
        (RESMultistepScheduler(**KARRAS, **TO_SIGMA_MIN), {"order": 3}, 3, (25, 50, 100)),
        (ERSDEScheduler(**KARRAS, **TO_SIGMA_MIN), {"order": 1, "noise_scale": "ode"}, 1, (50, 100, 200)),
        (ERSDEScheduler(**KARRAS, **TO_SIGMA_MIN), {"order": 2, "noise_scale": "ode"}, 2, (50, 100, 200)),
        (RestartScheduler(**KARRAS, **TO_SIGMA_MIN), {"intervals": []}, 2, (25, 50, 100)),
        (DPMFastScheduler(**TO_SIGMA_MIN), {}, 3, (31, 61, 121)),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "config") else None,
)
def test_error_falls_as_fast_as_the_solver_promises(scheduler, options, order, steps):
    errors = [ode_error(scheduler, n, **options) for n in steps]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(measured) > order - 0.25, (errors, measured)


def through(run, believe, x, noise=torch.randn_like):
    i = 0
    while i < len(run):
        x, i = run.step(told("epsilon", believe(run, i, x), run, i, x), i, x, noise).prev_sample, i + 1
    return x


def test_a_smaller_tolerance_costs_calls_and_buys_accuracy():
    mean, deviation = 0.4, 0.7
    found = []
    for rtol in (0.05, 0.005, 0.0005):
        run = DPMAdaptiveScheduler().plan(1, rtol=rtol, atol=rtol / 10)
        scale = math.hypot(run.levels[0].sigma, deviation)
        x = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8) * scale
        exact = mean + deviation * (x - mean) / scale
        error = (through(run, gaussian_belief(mean, deviation), x) - exact).abs().max().item()
        found.append((error, len(run)))
    assert [error for error, _ in found] == sorted([error for error, _ in found], reverse=True)
    assert [calls for _, calls in found] == sorted(calls for _, calls in found)
    assert found[-1][0] < 2e-3


STOCHASTIC = {
    "2s ancestral": lambda: DPMSolver2SAncestralScheduler(**KARRAS).plan(60),
    "3m sde": lambda: DPMSolver3MSDEScheduler(**KARRAS).plan(60),
    "res, ancestral": lambda: RESMultistepScheduler(**KARRAS).plan(100, eta=1.0),
    "er-sde": lambda: ERSDEScheduler(**KARRAS).plan(60),
    "er-sde, sde": lambda: ERSDEScheduler(**KARRAS).plan(100, noise_scale="sde"),
    "restart": lambda: RestartScheduler(**KARRAS).plan(40, intervals=[(0.1, 2.0, 10, 2), (1.0, 8.0, 10, 1)]),
    "fast, ancestral": lambda: DPMFastScheduler().plan(150, eta=1.0),
    "adaptive, ancestral": lambda: DPMAdaptiveScheduler().plan(1, eta=1.0, rtol=0.01),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solvers_give_the_right_mean_and_spread(name):
    generator = torch.Generator().manual_seed(0)

    def draw(like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    run = STOCHASTIC[name]()
    x = draw(torch.empty(1, 1, 100, 200, dtype=torch.float64)) * run.init_noise_sigma
    end = through(run, gaussian_belief(0.4, 0.7), x, draw)
    assert end.mean().item() == pytest.approx(0.4, abs=0.03)
    assert end.std().item() == pytest.approx(0.7, rel=0.04)


@pytest.mark.parametrize("make", FURTHER)
def test_a_perfect_prediction_of_one_point_is_reached_from_any_start(make):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for spacing, steps in itertools.product(("leading", "karras", "beta"), (1, 2, 3, 7, 40)):
        scheduler = make().with_spacing(spacing)
        length = len(scheduler.plan(steps))
        for start in {0, 1, length // 2, length - 1} & set(range(length)):  # in the middle of a step, too
            run = scheduler.plan(steps)
            x, i = run.add_noise(point, noises(0)()[:1, :2, :2, :2], start), start
            while i < len(run):
                x, i = run.step(told("epsilon", point, run, i, x), i, x, torch.randn_like).prev_sample, i + 1
            torch.testing.assert_close(x, point, rtol=0, atol=1e-8)


@pytest.mark.parametrize("make", FURTHER)
def test_noise_is_drawn_only_when_needed(make):
    drawn = []

    def noise(like):
        drawn.append(like.shape)
        return torch.zeros_like(like)

    run = make().plan(10)
    through(run, gaussian_belief(0.0, 1.0), torch.ones(2, 3, 2, 2), noise)
    expected = {DPMSolver2SAncestralScheduler: 9, DPMSolver3MSDEScheduler: 9, ERSDEScheduler: 9}.get(make, 0)
    assert drawn == [(2, 3, 2, 2)] * expected


@pytest.mark.parametrize("make", [make for make in FURTHER if make is not DPMAdaptiveScheduler])
def test_a_step_never_looks_at_the_numbers(make):
    for config in ({}, {"clip_sample": True}):
        run = make(**config).plan(22)
        x = torch.empty(1, 3, 4, 4, device="meta")
        for i in range(len(run)):
            out = run.step(run.scale_model_input(x, i), i, x, torch.empty_like)
            assert out.pred_original_sample.shape == x.shape
            x = out.prev_sample


@pytest.mark.parametrize("make", FURTHER)
def test_configs_are_saved_loaded_and_swapped(make, tmp_path):
    spaced = make(beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1).with_spacing("karras")
    spaced.save_pretrained(tmp_path)
    loaded = make.from_pretrained(tmp_path)
    assert loaded.plan(6).sigmas == spaced.plan(6).sigmas
    stable_diffusion = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
    )
    mine = make.from_config(stable_diffusion.config, use_karras_sigmas=True)
    assert mine.config.steps_offset == 1
    assert np.array_equal(mine.noise_schedule.sigmas, stable_diffusion.noise_schedule.sigmas)
    assert {make, PNDMScheduler} <= set(stable_diffusion.compatibles)
    back = PNDMScheduler.from_config(mine.config)
    assert back.config.skip_prk_steps
    assert back.plan(7).timesteps == stable_diffusion.plan(7).timesteps


@pytest.mark.parametrize("make", [DPMSolver2SAncestralScheduler, DPMSolver3MSDEScheduler, RESMultistepScheduler])
def test_run_options_hold_in_the_familiar_way_too(make):
    chosen = {"set_with": {"num_inference_steps": 8, "eta": 0.3}}
    one, other = familiar(make(), **chosen), planned(make(), 8, eta=0.3)
    assert distance(one, other) < 1e-5
    assert distance(one, planned(make(), 8, eta=0.4)) > 1e-3


def test_an_adaptive_run_grows_in_the_familiar_way_too():
    scheduler = DPMAdaptiveScheduler()
    scheduler.set_timesteps(1)
    x, calls = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), []
    ends = []
    start = x * scheduler.init_noise_sigma
    x = start
    for t in scheduler.timesteps:
        calls.append(t)
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.tanh(scaled), t, x).prev_sample
    ends.append(x)
    run, x, i = DPMAdaptiveScheduler().plan(1), start, 0
    while i < len(run):
        x, i = run.step(torch.tanh(run.scale_model_input(x, i)), i, x).prev_sample, i + 1
    torch.testing.assert_close(x, ends[0])
    assert calls == run.timesteps
    assert len(calls) == len(run.levels) == len(run.targets) == len(run.sigmas) - 1 > 20


class Point(torch.nn.Module):
    def forward(self, x, t, target, return_dict=True, attention=None):
        return (target.expand_as(x),)


def test_the_loop_follows_an_adaptive_run_to_its_end():
    run = DPMAdaptiveScheduler(prediction_type="sample").plan(10)
    seen = []
    x = denoise(
        torch.randn(1, 1, 4, 4) * run.init_noise_sigma,
        run,
        NetworkDenoiser(Point()),
        {"positive": {"target": torch.full((1, 1, 1, 1), 0.3)}},
        noise=torch.randn_like,
        on_step=lambda step, x: (seen.append(step.index), x)[1],
    )
    torch.testing.assert_close(x, torch.full_like(x, 0.3))
    assert seen == list(range(len(run)))


def test_an_adaptive_run_comes_to_an_end_or_says_why_not():
    torch.manual_seed(0)
    run, x, i = DPMAdaptiveScheduler().plan(1), torch.randn(1, 1, 4, 4), 0
    while i < 60:
        x, i = run.step(torch.randn_like(x), i, x).prev_sample, i + 1  # a network that is not smooth
    assert run.controller.h >= 1e-3
    run, x = DPMAdaptiveScheduler().plan(1), torch.randn(1, 1, 4, 4)
    with pytest.raises(FloatingPointError, match="not finite"):
        through(run, lambda run, i, x: x * math.nan, x)
    with pytest.raises(ValueError, match="in order"):
        DPMAdaptiveScheduler().plan(1).step(x, 3, x)


def test_options_out_of_range_are_refused_by_name():
    for make, options, match in (
        (RESMultistepScheduler, {"order": 4}, "order=4"),
        (ERSDEScheduler, {"order": 0}, "order=0"),
        (ERSDEScheduler, {"noise_scale": "loud"}, "'er_sde_5'"),
        (DPMSolver3MSDEScheduler, {"eta": -1.0}, "eta=-1"),
        (DPMAdaptiveScheduler, {"order": 1}, "order=1"),
    ):
        with pytest.raises(ValueError, match=match):
            make().plan(5, **options)


@pytest.mark.parametrize("name", [make.__name__ for make in FURTHER])
def test_they_are_public(name):
    assert getattr(langevin, name).__name__ == name
