"""The solvers that ask the network half-way through a step: KDPM2, with and without fresh noise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import langevin
from langevin import KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from tests.schedulers.meaning_checks import FORMS, gaussian_belief, ode_error, sample
from tests.schedulers.parity_checks import same_lists
from tests.schedulers.scheduler_checks import (
    SPACINGS,
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

NAMES = ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]
LATENT = {"beta_schedule": "scaled_linear"}
CONFIGS = [
    {},
    LATENT,
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 500, "beta_end": 0.04},
    {"trained_betas": torch.linspace(0.0005, 0.015, 1000).tolist()},
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "leading", "steps_offset": 1, **LATENT},
    {"timestep_spacing": "trailing"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "use_karras_sigmas": True},
    *({f"use_{kind}_sigmas": True, **LATENT} for kind in ("karras", "exponential", "beta")),
    *({f"use_{kind}_sigmas": True, "timestep_spacing": "leading"} for kind in ("karras", "exponential", "beta")),
]


def label(config: dict) -> str:
    return "-".join(f"{k}={'…' if k == 'trained_betas' else v}" for k, v in config.items()) or "default"


# -- numbers of the reference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=label)
@pytest.mark.parametrize("name", NAMES)
def test_whole_trajectories_and_lists_equal_the_reference(name, config):
    if config.get("use_beta_sigmas"):
        pytest.importorskip("scipy", reason="the reference needs scipy for beta sigmas")
    ours, theirs = both(name, **config)
    # The reference divides by σ what it multiplied by σ: in fp32, its own rounding is 1e-5. And with the cosine
    # schedule it goes down 20291 in the first step, by a slope at a level that it knows to four digits.
    steep = config.get("beta_schedule") == "squaredcos_cap_v2"
    for steps in STEPS:
        for start in starts(steps, 2):
            same_as_reference(
                ours, theirs, steps, start, seed=steps, dtype=torch.float64, tolerance=1e-4 if steep else 1e-5
            )
        same_lists(ours, theirs)


def test_single_precision_gives_the_reference_too():
    for name in NAMES:
        ours, theirs = both(name, **LATENT)
        for steps in (7, 20):
            same_as_reference(ours, theirs, steps, seed=steps)


@pytest.mark.parametrize("name", NAMES)
def test_before_set_timesteps_the_run_is_over_all_of_training(name):
    ours, theirs = both(name, **LATENT)
    same_lists(ours, theirs)
    x, output = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    t = theirs.timesteps[0]
    torch.testing.assert_close(ours.scale_model_input(x, t), theirs.scale_model_input(x, t))
    torch.testing.assert_close(ours.step(output, t, x).prev_sample, theirs.step(output, t, x).prev_sample)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", NAMES)
def test_fewer_training_timesteps_equal_the_reference(name, spacing):
    ours, theirs = both(name, timestep_spacing=spacing)
    set_with = {"num_inference_steps": 6, "device": None, "num_train_timesteps": 600}
    want = familiar(theirs, set_with=set_with)
    assert distance(familiar(ours, set_with=set_with), want) < 1e-5
    assert distance(planned(ours, 6, num_train_timesteps=600), want) < 1e-5
    assert distance(familiar(ours, 6), want) > 1e-3
    same_lists(ours, familiar(theirs, 6) and theirs)


@pytest.mark.parametrize("name", NAMES)
def test_place_state_and_noising_are_the_reference_s_at_every_call(name):
    schedulers = both(name)
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for scheduler in schedulers:
        scheduler.set_timesteps(5)
    ours, theirs = schedulers
    t = theirs.timesteps[[2, 4]]
    torch.testing.assert_close(ours.add_noise(x0, noise, t), theirs.add_noise(x0, noise, t), rtol=1e-5, atol=1e-5)
    for scheduler in schedulers:
        scheduler.set_begin_index(2)
    x = torch.randn(2, 3, 4, 4)
    for t in theirs.timesteps[2:]:
        seen = []
        for scheduler in schedulers:
            noised = scheduler.add_noise(x0, noise, t.repeat(2))
            scaled = scheduler.scale_model_input(x, t)
            seen.append((noised, scaled, scheduler.step_index, scheduler.state_in_first_order))
            scheduler.step(x, t, x)
        assert seen[0][2:] == seen[1][2:]
        for mine, his in zip(seen[0][:2], seen[1][:2], strict=True):
            torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-4)
    assert ours.step_index == theirs.step_index == 9
    noised = [scheduler.add_noise(x0, noise, t.repeat(2)) for scheduler in schedulers]
    torch.testing.assert_close(*noised)


def test_a_plan_s_noising_goes_to_the_level_half_way_too():
    run = KDPM2DiscreteScheduler().plan(4)
    x0, noise = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    noised = [run.add_noise(x0, noise, i).item() for i in range(3)]
    assert noised[1] == pytest.approx(math.sqrt(noised[0] * noised[2]), rel=1e-6)


@pytest.mark.parametrize(
    ("config", "set_with"),
    [
        ({"beta_schedule": "quartic"}, {"num_inference_steps": 4}),
        ({"timestep_spacing": "dense"}, {"num_inference_steps": 4}),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, {"num_inference_steps": 4}),
        ({}, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_what_the_reference_refuses_is_refused(name, config, set_with):
    with pytest.raises((ValueError, NotImplementedError, TypeError)):
        getattr(reference(), name)(**config).set_timesteps(**set_with)
    with pytest.raises((ValueError, NotImplementedError)) as caught:
        getattr(langevin, name)(**config).set_timesteps(**set_with)
    for value in config.values():
        assert value is True or str(value) in str(caught.value)


@pytest.mark.parametrize("kind", ["sample", "wish"])
@pytest.mark.parametrize("name", NAMES)
def test_prediction_types_that_the_reference_refuses_are_refused(name, kind):
    x = torch.zeros(1, 3, 2, 2)

    def use(library):
        scheduler = getattr(library, name)(prediction_type=kind)
        scheduler.set_timesteps(5)
        scheduler.step(x, scheduler.timesteps[0], x)

    for library in (langevin, reference()):  # ours refuses at once what no scheduler knows
        with pytest.raises((ValueError, NotImplementedError), match=kind):
            use(library)


# -- meaning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_perfect_prediction_of_one_point_is_reached_from_any_start(spacing):
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for make in (KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler):
        scheduler = make().with_spacing(spacing)
        for steps in (1, 2, 3, 7, 20):
            length = len(scheduler.plan(steps))
            assert length == 2 * steps - 1
            for start in {0, 2, steps - steps % 2, length - 1}:
                if start >= length:
                    continue
                run = scheduler.plan(steps)
                x = run.add_noise(point, torch.randn_like(point), start)
                for form in FORMS[:2]:
                    run.prediction_type = form
                    run.configure()
                    end = sample(run, x, lambda *_: point, form, start=start)
                    torch.testing.assert_close(end, point, rtol=0, atol=1e-8)


def test_error_falls_with_the_second_power_of_the_step():
    """From σ = 20 to 0.05: the step into σ = 0 is Euler's, and leaves an error that does not fall."""
    errors = []
    for steps in (12, 25, 50, 100):
        run = KDPM2DiscreteScheduler().plan(sigmas=[20 * (0.05 / 20) ** (k / steps) for k in range(steps + 1)])
        x = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8) * 20
        exact = 0.4 + (x - 0.4) * math.hypot(0.05, 0.7) / math.hypot(20, 0.7)
        errors.append((sample(run, x, gaussian_belief(0.4, 0.7)) - exact).abs().max().item())
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(measured) > 1.9, (errors, measured)
    assert ode_error(KDPM2DiscreteScheduler(use_karras_sigmas=True), 50) < 2e-3


@pytest.mark.parametrize("as_published", [False, True])
def test_ancestral_noise_gives_the_right_mean_and_spread(as_published):
    torch.manual_seed(0)
    run = KDPM2AncestralDiscreteScheduler(use_karras_sigmas=True).plan(150, as_published=as_published)
    x = torch.randn(1, 1, 100, 200, dtype=torch.float64) * run.init_noise_sigma
    end = sample(run, x, gaussian_belief(0.4, 0.7))
    assert end.mean().item() == pytest.approx(0.4, abs=0.03)
    assert end.std().item() == pytest.approx(0.7, rel=0.05)


def test_as_published_looks_exactly_half_way_down():
    config = {"beta_schedule": "squaredcos_cap_v2"}
    exact = KDPM2AncestralDiscreteScheduler(**config).plan(50, as_published=True).sigmas
    assert exact[1::2][:-1] == pytest.approx(exact[2::2], rel=1e-12)
    rounded = KDPM2AncestralDiscreteScheduler(**config).plan(50).sigmas
    assert rounded[0::2] == exact[0::2]
    assert abs(rounded[1] / exact[1] - 1) > 1e-4  # the first step goes from 20291 to 31


def test_where_the_reference_has_no_number_ours_has():
    ours, theirs = both("KDPM2AncestralDiscreteScheduler", beta_schedule="squaredcos_cap_v2")
    assert not finite(familiar(theirs, 3))
    for through in (familiar, planned):
        assert finite(through(ours, 3))


@pytest.mark.parametrize(("make", "calls"), [(KDPM2DiscreteScheduler, 0), (KDPM2AncestralDiscreteScheduler, 9)])
def test_noise_is_drawn_once_a_step_and_not_into_the_end(make, calls):
    drawn = []

    def noise(like):
        drawn.append(like.shape)
        return torch.zeros_like(like)

    run, x = make().plan(10), torch.ones(2, 3, 2, 2)
    for i in range(len(run)):
        x = run.step(x, i, x, noise).prev_sample
    assert drawn == [(2, 3, 2, 2)] * calls


@pytest.mark.parametrize("make", [KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler])
def test_a_step_never_looks_at_the_numbers(make):
    run, x = make().plan(6), torch.empty(1, 3, 4, 4, device="meta")
    for i in range(len(run)):
        run.add_noise(x, x, i)
        out = run.step(run.scale_model_input(x, i), i, x, torch.empty_like)
        assert out.pred_original_sample.shape == x.shape
        x = out.prev_sample


def test_a_run_may_end_above_zero():
    """Then the last step has two calls as well, and the error its order."""
    run = KDPM2DiscreteScheduler().plan(sigmas=[10.0, 3.0, 1.0])
    assert len(run) == 4
    assert run.sigmas == pytest.approx([10.0, math.sqrt(30), 3.0, math.sqrt(3), 1.0])


def test_of_equal_timesteps_the_second_step_is_taken_as_in_the_reference():
    """Karras's are rounded to whole timesteps, so that several steps may have the same."""
    ours, theirs = both("KDPM2DiscreteScheduler", use_karras_sigmas=True, **LATENT)
    found = 0
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(60)
    told = theirs.timesteps.tolist()
    for k in range(2, len(told), 2):
        t = theirs.timesteps[k]
        assert ours.index_for_timestep(t) == theirs.index_for_timestep(t)
        found += told.count(told[k]) > 1
    assert found > 1
