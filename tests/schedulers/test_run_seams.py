"""What a pipeline may ask of any run: where x begins, whether the variance is learned, which noise it takes."""

from __future__ import annotations

import pytest
import torch

import langevin
from langevin import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    KarrasVeScheduler,
    ScoreSdeVeScheduler,
    UnCLIPScheduler,
    VQDiffusionScheduler,
)
from langevin.schedulers import catalogue

SHAPE = (2, 3, 4, 4)
CONFIGS = {"VQDiffusionScheduler": {"num_vec_classes": 17}}
OTHER_STARTS = {"VQDiffusionScheduler", "KarrasVeScheduler"}
LEARN = [(DDPMScheduler, "learned"), (DDPMScheduler, "learned_range"), (UnCLIPScheduler, "learned_range")]


def plan(name: str):
    scheduler = getattr(langevin, name)(**CONFIGS.get(name, {}))
    return scheduler.plan(5, **({"jump_length": 2, "jump_n_sample": 1} if name == "RePaintScheduler" else {}))


def refused(*args):
    raise AssertionError("nothing is to be drawn here")


@pytest.mark.parametrize("name", sorted(set(catalogue.names()) - OTHER_STARTS))
def test_a_run_begins_with_the_first_noise_as_loud_as_it_says(name):
    run, asked = plan(name), []
    z = torch.randn(SHAPE)
    x = run.begin(lambda: asked.append(1) or z, refused, SHAPE, "cpu")
    assert len(asked) == 1
    assert torch.equal(x, z * run.init_noise_sigma)


def test_the_variance_exploding_sde_begins_at_its_greatest_noise():
    for options in ({}, {"as_published": True}):
        run = ScoreSdeVeScheduler(sigma_max=50.0).plan(20, **options)
        x = run.begin(lambda: torch.ones(SHAPE), refused, SHAPE, "cpu")
        torch.testing.assert_close(x, torch.full(SHAPE, 50.0), rtol=1e-5, atol=0)


def test_karras_s_sampler_begins_raised_by_its_first_step_s_noise():
    scheduler = KarrasVeScheduler(sigma_max=5.0, s_churn=30, s_min=0.3, s_max=100.0, s_noise=1.0)
    run = scheduler.plan(10)
    z, fresh = torch.randn(SHAPE), torch.randn(SHAPE)
    x = run.begin(lambda: z, lambda like: fresh, SHAPE, "cpu")
    scheduler.set_timesteps(10)
    raised, _ = scheduler.add_noise_to_input(
        z * scheduler.init_noise_sigma, scheduler.schedule[-1], torch.Generator().manual_seed(3)
    )
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(x - run.added[0] * fresh, raised - run.added[0] * drawn, rtol=1e-5, atol=1e-4)
    assert x.std() == pytest.approx(run.init_noise_sigma, rel=0.2)


def test_codes_begin_as_all_mask_and_nothing_is_drawn():
    run = plan("VQDiffusionScheduler")
    for device in ("cpu", "meta"):
        x = run.begin(refused, refused, (2, 9), device)
        assert (x.shape, x.dtype, x.device.type) == ((2, 9), torch.int64, device)
    assert (run.begin(refused, refused, (2, 9), "cpu") == 16).all()


@pytest.mark.parametrize("name", catalogue.names())
def test_no_run_wants_a_variance_that_its_config_does_not_name(name):
    assert plan(name).learns_variance is False


@pytest.mark.parametrize(("cls", "kind"), LEARN, ids=str)
def test_a_run_that_learns_the_variance_takes_it_from_the_second_half_of_the_channels(cls, kind):
    x, mean = torch.randn(SHAPE), torch.randn(SHAPE)

    def moved(variance: float) -> torch.Tensor:
        run = cls(variance_type=kind).plan(5)
        assert run.learns_variance is True
        output = torch.cat([mean, torch.full(SHAPE, variance)], 1)
        return run.step(output, 0, x, torch.ones_like).prev_sample

    assert (moved(0.9) > moved(0.1)).all()
    with pytest.raises(ValueError, match="twice"):
        cls(variance_type=kind).plan(5).step(mean, 0, x, torch.ones_like)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_a_solver_that_has_no_use_for_the_variance_takes_either_number_of_channels(kind):
    x, output = torch.randn(SHAPE), torch.randn(2, 6, 4, 4)
    ends = []
    for given in (output, output[:, :3]):
        run = DPMSolverMultistepScheduler(variance_type=kind).plan(5)
        assert run.learns_variance is False
        ends.append(run.step(given, 0, x).prev_sample)
    assert torch.equal(*ends)


def test_codes_are_drawn_with_the_uniform_noise_that_the_caller_gives_as_it_is():
    scheduler = VQDiffusionScheduler(num_vec_classes=17)
    output = torch.randn(2, 16, 9).log_softmax(1)
    run, asked = scheduler.plan(5), []
    x = run.begin(refused, refused, (2, 9), "cpu")

    def favours(code: int):
        def noise(like):
            asked.append((like.shape, like.dtype))
            uniform = torch.full_like(like, 1e-9)  # the time until a code happens is -log u: long
            uniform[:, code] = 1.0 - 1e-7  # and soon
            return uniform

        return noise

    for i in range(5):
        assert (run.step(output, i, x, favours(i)).prev_sample == i).all()
    assert asked == [((2, 17, 9), torch.float32)] * 4 + [((2, 16, 9), torch.float32)]  # at last no mask is left
    assert run.step(output, 0, x, torch.rand_like).prev_sample.shape == x.shape
