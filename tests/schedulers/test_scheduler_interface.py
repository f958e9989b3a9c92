"""The shape of the interface: runs, the familiar methods, configs."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

import langevin
from langevin import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from tests.schedulers.scheduler_checks import (
    ALSO_THERE,
    GOES_BACK,
    NAMES,
    SEED,
    SPACINGS,
    both,
    distance,
    familiar,
    finite,
    planned,
    reference,
)


def test_plan_takes_exactly_one_way_of_choosing_levels():
    for given in ({}, {"num_inference_steps": 3, "sigmas": [1.0, 0.0]}, {"timesteps": [5, 3], "sigmas": [1.0, 0.0]}):
        with pytest.raises(ValueError, match="exactly one"):
            DDIMScheduler().plan(**given)
    with pytest.raises(ValueError, match="at least one step"):
        DDIMScheduler().plan(0)


@pytest.mark.parametrize("name", NAMES)
def test_plan_names_the_options_it_takes(name):
    make = getattr(langevin, name)
    with pytest.raises(TypeError, match="mood") as caught:
        make().plan(5, mood="good")
    assert all(option in str(caught.value) for option in make.run_options)


def test_eta_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        DDIMScheduler().plan(5, eta=1.5)


def test_step_output_reads_in_all_the_usual_ways():
    run = DDIMScheduler().plan(4)
    x = torch.randn(1, 3, 2, 2)
    out = run.step(x, 0, x)
    previous, original = out
    assert previous is out.prev_sample is out[0] is out["prev_sample"]
    assert original is out.pred_original_sample is out[1] is out["pred_original_sample"]
    assert out.to_tuple() == (previous, original)
    with pytest.raises(KeyError):
        out["x"]
    with pytest.raises(IndexError):
        out[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_sample_keeps_its_precision(name, dtype):
    run = getattr(langevin, name)().plan(6)
    x = torch.randn(1, 3, 4, 4).to(dtype)
    for i in range(len(run)):
        out = run.step(run.scale_model_input(x, i), i, x, torch.randn_like)
        assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype
        assert run.scale_model_input(x, i).dtype == run.add_noise(x, x, i).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_network_output_and_sample_may_differ_in_precision(name):
    run, double = (getattr(langevin, name)().plan(6) for _ in range(2))
    x, output = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4).half()
    for i in range(len(run)):
        mixed = run.step(output, i, x, torch.zeros_like).prev_sample
        exact = double.step(output.double(), i, x.double(), torch.zeros_like).prev_sample
        torch.testing.assert_close(mixed.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_changes_none_of_its_inputs(name):
    run = getattr(langevin, name)().plan(6)
    x, output = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    copies = x.clone(), output.clone()
    for i in range(len(run)):
        run.step(output, i, x, torch.randn_like)
    assert torch.equal(x, copies[0])
    assert torch.equal(output, copies[1])


def test_noise_at_a_call_and_after_the_last():
    x0, noise = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    for scheduler in (DDIMScheduler(), EulerDiscreteScheduler()):
        run = scheduler.plan(5)
        alpha, sigma = run.levels[2]
        torch.testing.assert_close(run.add_noise(x0, noise, 2), alpha * x0 + sigma * noise)
        assert run.add_noise(x0, noise, 5) is x0


def test_run_sigmas_are_the_same_for_all_solvers_on_the_same_timesteps():
    lists = [make(timestep_spacing="trailing").plan(10).sigmas for make in (DDIMScheduler, DDPMScheduler)]
    lists.append(EulerDiscreteScheduler(timestep_spacing="trailing").plan(10).sigmas)
    for one in lists[1:]:
        assert one == pytest.approx(lists[0], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_own_timesteps_and_sigmas_agree(name):
    """A list of timesteps, and the σ of the same levels, are the same run. (The last level is the end.)"""
    config = {"skip_prk_steps": True, "set_alpha_to_one": True} if name == "PNDMScheduler" else {}
    scheduler = getattr(langevin, name)(**config)
    chosen = [950, 700, 500, 333, 111, 7]
    by_sigma = [*(float(scheduler.noise_schedule.sigmas[t]) for t in chosen), 0.0]
    ours = planned(scheduler, set_with={"timesteps": chosen})
    other = planned(scheduler, set_with={"sigmas": by_sigma})
    assert distance(ours, other) < 1e-4
    assert distance(familiar(scheduler, set_with={"timesteps": chosen}), ours) < 1e-6


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", NAMES)
def test_any_spacing_with_any_solver_in_both_apis(name, spacing):
    plain = getattr(langevin, name)()
    spaced = plain.with_spacing(spacing)
    assert type(spaced) is type(plain)
    assert plain._spacing is None
    sigmas = spaced.plan(8).sigmas
    if name not in GOES_BACK:
        assert all(later <= sigma * (1 + 1e-6) for sigma, later in itertools.pairwise(sigmas))
    assert distance(familiar(spaced, 8), planned(spaced, 8)) < 1e-4  # the one tells the network fp32 timesteps


def test_spacing_by_config_and_by_method_are_the_same():
    config = {"beta_schedule": "scaled_linear"}
    for kind in ("karras", "exponential", "beta"):
        ours = EulerDiscreteScheduler(**config).with_spacing(kind).plan(9)
        by_config = EulerDiscreteScheduler(**config, **{f"use_{kind}_sigmas": True}).plan(9)
        assert ours.sigmas == by_config.sigmas
        assert ours.timesteps == by_config.timesteps
    for kind in ("leading", "trailing", "linspace"):
        ours = EulerDiscreteScheduler(**config).with_spacing(kind).plan(9)
        by_config = EulerDiscreteScheduler(**config, timestep_spacing=kind).plan(9)
        assert (ours.sigmas, ours.init_noise_sigma) == (by_config.sigmas, by_config.init_noise_sigma)


def test_spacing_options_and_unknown_spacings():
    run = DDIMScheduler().with_spacing("karras", rho=3.0, sigma_min=0.1, sigma_max=20.0).plan(6)
    assert run.sigmas[0] == pytest.approx(20.0)
    assert run.sigmas[-2] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="'karras'"):
        DDIMScheduler().with_spacing("dense")
    with pytest.raises(TypeError, match=r"'rho'.*sigma_max, sigma_min"):
        DDIMScheduler().with_spacing("exponential", rho=3.0)
    latent = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert latent.with_spacing("align-your-steps").plan(10).sigmas[1] == pytest.approx(6.475, rel=0.01)
    uniform, linspace = (DDIMScheduler().with_spacing(name).plan(7) for name in ("uniform", "linspace"))
    assert uniform.timesteps == linspace.timesteps


@pytest.mark.parametrize("name", ALSO_THERE)
def test_a_spacing_is_saved_and_swapped_and_the_reference_does_not_mind(name, tmp_path):
    spaced = getattr(langevin, name)().with_spacing("karras", rho=5.0)
    spaced.save_pretrained(tmp_path)
    loaded = getattr(langevin, name).from_pretrained(tmp_path)
    assert loaded.plan(6).sigmas == spaced.plan(6).sigmas
    assert EulerDiscreteScheduler.from_config(spaced.config)._spacing == ("karras", {"rho": 5.0})
    theirs = getattr(reference(), name).from_pretrained(tmp_path)
    theirs.set_timesteps(6)


def test_one_generator_per_image_makes_each_image_alone_repeatable():
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(10)
    x, output = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    t = scheduler.timesteps[2]
    generators = [torch.Generator().manual_seed(k) for k in range(3)]
    batch = scheduler.step(output, t, x, generator=generators).prev_sample
    for k in range(3):
        alone = scheduler.step(
            output[k : k + 1], t, x[k : k + 1], generator=torch.Generator().manual_seed(k)
        ).prev_sample
        torch.testing.assert_close(batch[k : k + 1], alone)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        scheduler.step(output, t, x, generator=generators[:2])


def test_a_timestep_of_no_run_is_refused_with_the_run_named():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="900"):
        scheduler.step(torch.zeros(1, 1, 1, 1), 901, torch.zeros(1, 1, 1, 1))


def test_learned_variance_without_its_channels_is_refused():
    run = DDPMScheduler(variance_type="learned_range").plan(5)
    with pytest.raises(ValueError, match="twice the sample's channels"):
        run.step(torch.zeros(1, 3, 2, 2), 0, torch.zeros(1, 3, 2, 2))


def test_pndm_counts_from_where_it_begins_if_asked():
    for scheduler in (PNDMScheduler(), PNDMScheduler(skip_prk_steps=True)):
        x = torch.randn(1, 3, 2, 2)
        run = scheduler.plan(10, as_published=True)
        if scheduler.config.skip_prk_steps:
            assert torch.isfinite(run.step(x, 4, x).prev_sample).all()
        else:
            with pytest.raises(ValueError, match="skip_prk_steps"):
                run.step(x, 4, x)


@pytest.mark.parametrize("config", [{}, {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}], ids=str)
@pytest.mark.parametrize("name", ALSO_THERE)
def test_saved_here_loads_there_and_back(name, config, tmp_path):
    ours, theirs = both(name, **config, **SEED.get(name, {}))
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    written = [json.loads((tmp_path / who / "scheduler_config.json").read_text()) for who in ("ours", "theirs")]
    assert {k: v for k, v in written[0].items() if k[0] != "_"} == {k: v for k, v in written[1].items() if k[0] != "_"}
    make, remake = getattr(langevin, name), getattr(reference(), name)
    for folder in ("ours", "theirs"):
        here, there = make.from_pretrained(tmp_path / folder), remake.from_pretrained(tmp_path / folder)
        assert distance(familiar(here, 7), familiar(there, 7)) < 1e-5


SWAPS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"timestep_spacing": "trailing"},
    {"steps_offset": 1, "timestep_spacing": "leading"},
]


def swapped(library, name, config):
    """The scheduler of this config, or the name of the error."""
    try:
        return getattr(library, name).from_config(config, **SEED.get(name, {}))
    except (ValueError, NotImplementedError) as refused:
        return "NotImplementedError" if isinstance(refused, NotImplementedError) else type(refused).__name__


@pytest.mark.parametrize("pair", list(itertools.permutations(ALSO_THERE, 2)), ids="-to-".join)
def test_swapping_a_scheduler_gives_what_the_reference_gives(pair, tmp_path):
    first, second = pair
    config = SWAPS[(ALSO_THERE.index(first) + 2 * ALSO_THERE.index(second)) % len(SWAPS)]
    config = {key: value for key, value in config.items() if key in getattr(langevin, first)._settings_names()}
    sources = both(first, **config, **SEED.get(first, {}))
    sources[1].save_pretrained(tmp_path)
    loaded = [getattr(library, first).from_pretrained(tmp_path) for library in (langevin, reference())]
    for ours, theirs in (sources, loaded):
        mine, his = swapped(langevin, second, ours.config), swapped(reference(), second, theirs.config)
        if mine == "NotImplementedError":  # another solver's algorithm_type, from a file
            assert his == mine
            continue
        back = swapped(langevin, first, mine.config)
        his_back = his if isinstance(his, str) else swapped(reference(), first, his.config)
        if his_back == "ValueError":  # DEIS, from a file, into DPM-Solver: it checks "deis" before it translates it
            assert "DEISMultistepScheduler" in pair
            assert finite(planned(mine, 7))
            assert finite(planned(back, 7))
            continue
        assert {k: mine.config[k] for k in mine._settings_names()} == {k: his.config[k] for k in mine._settings_names()}
        assert {k: back.config[k] for k in back._settings_names()} == {
            k: his_back.config[k] for k in back._settings_names()
        }
        assert distance(planned(mine, 7), familiar(his, 7)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_compatibles_are_classes_that_take_the_config(name):
    scheduler = getattr(langevin, name)()
    one_way = {"SASolverScheduler"}  # names the others, which do not name it: so in the reference
    assert set(NAMES) - one_way <= {c.__name__ for c in scheduler.compatibles}
    for other in scheduler.compatibles:
        other.from_config(scheduler.config)
