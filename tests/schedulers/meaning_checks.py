"""What a network that believes in some picture says, and where a run that believes it ends."""

from __future__ import annotations

import math

import torch

FORMS = ["epsilon", "v_prediction", "sample"]


def told(form: str, x0: torch.Tensor, run, i: int, x: torch.Tensor) -> torch.Tensor:
    """The output of a network of that form which believes in x0."""
    alpha, sigma = run.levels[i]
    norm = math.hypot(alpha, sigma)
    alpha, sigma, x = alpha / norm, sigma / norm, x / norm
    noise = (x - alpha * x0) / max(sigma, 1e-12)
    return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[form]


def gaussian_belief(mean: float, deviation: float):
    """E[x0 | x] when x0 ~ N(mean, deviation²)."""

    def x0(run, i, x):
        alpha, sigma = run.levels[i]
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return x0


def sample(run, x, believe, form="epsilon", start=0, noise=torch.randn_like):
    for i in range(start, len(run)):
        x = run.step(told(form, believe(run, i, x), run, i, x), i, x, noise).prev_sample
    return x


def ode_error(scheduler, steps: int, **options) -> float:
    """Distance from the exact end of the probability-flow ODE of a Gaussian, which is known in closed form."""
    mean, deviation = 0.4, 0.7
    run = scheduler.plan(steps, **options)
    alpha, sigma = run.levels[0]
    x = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8) * math.hypot(sigma, alpha * deviation)
    exact = mean + deviation * (x - alpha * mean) / math.hypot(sigma, alpha * deviation)
    return (sample(run, x, gaussian_belief(mean, deviation)) - exact).abs().max().item()
