"""Losses, learning rates and averages against the reference's arithmetic and the papers' equations."""

from __future__ import annotations

import math

import pytest
import torch

import langevin
from langevin.training import losses, rates
from langevin.training.average import Average, powered, quick

CONFIGS = {
    "linear": dict(),
    "scaled": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
}
ROWS = 6


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(ROWS, 4, 8, 8, generator=generator) for _ in range(2))
    return clean, noise, torch.tensor([0, 1, 100, 500, 900, 999])


def pair(config, prediction="epsilon"):
    import diffusers

    settings = {**CONFIGS[config], "prediction_type": prediction}
    return langevin.DDPMScheduler(**settings), diffusers.DDPMScheduler(**settings)


def graded(value_of, at):
    """A loss and its gradient."""
    at = at.clone().requires_grad_()
    value = value_of(at)
    value.backward()
    return value.detach(), at.grad


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 1.0, 5.0])
def test_loss_and_gradient_are_the_reference_ones(config, prediction, gamma):
    from diffusers.training_utils import compute_snr

    clean, noise, t = batch()
    ours, theirs = pair(config, prediction)
    said = torch.randn(noise.shape, generator=torch.Generator().manual_seed(9))

    def reference(said):
        target = noise if prediction == "epsilon" else theirs.get_velocity(clean, noise, t)
        if gamma is None:
            return torch.nn.functional.mse_loss(said, target)
        snr = compute_snr(theirs, t)
        weights = torch.stack([snr, gamma * torch.ones_like(t)], dim=1).min(dim=1)[0]
        weights = weights / snr if prediction == "epsilon" else weights / (snr + 1)
        each = torch.nn.functional.mse_loss(said, target, reduction="none").mean(dim=[1, 2, 3])
        return (each * weights).mean()

    def own(said):
        target = losses.target(ours, clean, noise, t, prediction)
        rows = losses.mean_of_rows(losses.squared(said - target))
        if gamma is not None:
            rows = rows * losses.weights("min_snr", losses.signal_to_noise(ours, t), prediction, gamma)
        return rows.mean()

    for mine, expected in zip(graded(own, said), graded(reference, said), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("detail", [0.5, 1.0, 10.0])
def test_dream_is_the_reference_one(detail):
    from diffusers.training_utils import compute_dream_and_update_latents

    clean, noise, t = batch()
    ours, theirs = pair("scaled")
    said = noise * 0.9 + 0.1
    x = ours.add_noise(clean, noise, t)

    def unet(*args):
        return type("Output", (), {"sample": said})

    expected = compute_dream_and_update_latents(unet, theirs, t, noise, x, noise, None, detail)
    for mine, one in zip(losses.dream(said, noise, x, ours, t, detail, "epsilon"), expected, strict=True):
        torch.testing.assert_close(mine, one, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="epsilon"):
        losses.dream(said, noise, x, ours, t, detail, "v_prediction")


def test_weightings_are_the_papers():
    snr = torch.tensor([0.0, 1e-4, 0.3, 5.0, 400.0])
    torch.testing.assert_close(
        losses.weights("soft_min_snr", snr, "sample", 5.0), torch.tensor([s * 5 / (s + 5) for s in snr.tolist()])
    )
    # Choi et al.'s weights are those of the error in ε
    torch.testing.assert_close(
        losses.weights("p2", snr, "epsilon", 0.5)[1:], torch.tensor([(1 + s) ** -0.5 for s in snr.tolist()[1:]])
    )
    torch.testing.assert_close(
        losses.weights("debiased", snr, "epsilon")[1:], torch.tensor([s**-0.5 for s in snr.tolist()[1:]])
    )
    for name in losses.WEIGHTINGS:
        # what is asked of x0 is the same, whatever the network predicts
        of_x0, of_epsilon, of_v = (
            losses.weights(name, snr, kind)[1:] for kind in ("sample", "epsilon", "v_prediction")
        )
        torch.testing.assert_close(of_epsilon * snr[1:], of_x0)
        torch.testing.assert_close(of_v * (snr[1:] + 1), of_x0)
        assert losses.weights(name, snr, "epsilon").isfinite().all()


def test_huber_is_square_near_zero_and_straight_far_from_it():
    torch.testing.assert_close(losses.huber(torch.tensor([1e-4]), 1.0), torch.tensor([1e-8]), rtol=1e-2, atol=0)
    far = losses.huber(torch.tensor([1000.0, 1001.0]), 0.1)
    assert (far[1] - far[0]).item() == pytest.approx(0.2, rel=1e-3)


def test_a_mask_counts_what_is_under_it_alone():
    values = torch.zeros(2, 3, 4, 4)
    values[0, :, 0, 0], values[1, :, :2] = 5.0, 1.0
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, 0, 0], mask[1, :, 1:3] = 1.0, 1.0
    assert losses.mean_of_rows(values, mask).tolist() == pytest.approx([5.0, 0.5])


def test_noise_of_several_resolutions_keeps_its_variance():
    generator = torch.Generator().manual_seed(0)

    def normal(shape):
        return torch.randn(shape, generator=generator)

    plain = normal((64, 4, 32, 32))
    rough = losses.multi_resolution(plain, normal, 0.8)
    assert rough.var().item() == pytest.approx(1.0, abs=0.05)
    means = [one.mean((2, 3)).var().item() for one in (plain, rough)]
    assert means[1] > 20 * means[0]
    offset = losses.with_offset(plain, normal, 0.1) - plain
    assert offset.var((2, 3)).max() < 1e-10
    assert offset[..., 0, 0].std().item() == pytest.approx(0.1, rel=0.2)
    assert (losses.perturbed(plain, normal, 0.1) - plain).std().item() == pytest.approx(0.1, rel=0.05)


# -- learning rates


@pytest.mark.parametrize("name", rates.NAMES)
@pytest.mark.parametrize(("warmup", "total", "cycles", "power"), [(0, 10, 1, 1.0), (3, 17, 3, 2.0), (5, 4, 2, 0.5)])
def test_rates_are_the_reference_ones(name, warmup, total, cycles, power):
    from diffusers.optimization import get_scheduler

    rules = "1:4,0.1:9,0.01"
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=0.03)
    scheduler = get_scheduler(
        name,
        optimiser,
        step_rules=rules,
        num_warmup_steps=warmup,
        num_training_steps=total,
        num_cycles=cycles,
        power=power,
    )
    own = rates.factor(
        name,
        warmup=warmup,
        total=total,
        cycles=cycles if name == "cosine_with_restarts" else None,
        power=power,
        rules=rules,
        rate=0.03,
    )
    for step in range(total + (3 if warmup <= total else 0)):
        assert 0.03 * own(step) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-9), step
        optimiser.step()
        scheduler.step()


def test_rates_that_are_not_there_are_refused_in_a_line():
    with pytest.raises(ValueError, match="cosine_with_restarts"):
        rates.factor("cosinus")
    with pytest.raises(ValueError, match="1:10"):
        rates.factor("piecewise_constant", rules="a:b")


# -- averages


@pytest.mark.parametrize("kind", ["quick", "powered"])
def test_averages_are_the_reference_ones(kind):
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    if kind == "quick":
        own, theirs = Average(net, quick), EMAModel(net.parameters())
    else:
        own = Average(net, lambda step: powered(step, 1.0, 0.75, 0.9999))
        theirs = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    for _ in range(30):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        own.update(net)
        theirs.step(net.parameters())
        for mine, other in zip(own.network.parameters(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(mine.detach(), other, atol=1e-6, rtol=1e-6)


def test_an_average_is_none_at_first_and_capped_at_last():
    assert quick(0) == powered(0) == 0.0
    assert quick(10**9) == powered(10**9) == 0.9999
    assert quick(1) == pytest.approx(2 / 11)
    assert powered(15) == pytest.approx(1 - math.pow(16, -0.75))
